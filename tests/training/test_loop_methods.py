"""Every method, killed by SIGKILL and resumed, equals itself undisturbed, bit for bit; the earlier runs too."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from kdschemes.config.prerequisites import prerequisite_runs
from kdschemes.models import create_model, save_weights
from kdschemes.storage.naming import run_name
from tests.processes import SignalAtFile, Started, run
from tests.schemes.cases import METHODS, base, configure
from tests.schemes.test_custom import NAMES, TOPOLOGIES, topology
from tests.training.test_loop import FILES

pytestmark = pytest.mark.slow

SMALL = [
    "data.val_fraction=0.9",
    "data.train_fraction=1",  # 126 training images: 2 steps an epoch
    "train.batch_size=64",
    "train.epochs=2",
    "train.checkpoint_every_steps=1",
    "train.eval_every_epochs=2",
    "train.log_every_steps=1",
    "train.num_threads=1",
]
CASES = {name: base(*method) for name, method in METHODS.items()}
CASES |= {f"topology-{name}": [f"experiment={TOPOLOGIES / name}.py", *topology(name)[1:]] for name in NAMES}
FEW = ("self-pskd", "self-dlb")
"""Methods that remember more than weights; a chain of runs is killed in tests/schemes/self_distillation/test_ban.py."""
KILLS = (4, 16)
"""Each process dies before it renames its n-th file; the second time only where other runs come first."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FEW else pytest.mark.exhaustive) for name in CASES]
)
def test_a_killed_run_resumes_exactly(name: str, tmp_path: Path) -> None:
    arguments = [*CASES[name], *SMALL]
    if name == "offline-dpkd":  # it continues from a trained network
        save_weights(create_model("resnet20", num_classes=10, channels=1, image_size=8), tmp_path / "before")
        arguments.append(f"model.checkpoint={tmp_path / 'before'}")
    whole = Started(arguments, tmp_path / "whole")
    for count in KILLS if prerequisite_runs(configure(*arguments)) else KILLS[:1]:
        killed = run(arguments, tmp_path / "run", SignalAtFile(signal.SIGKILL, count, ("os.rename",)))
        assert (killed.code, killed.err) == (-signal.SIGKILL, "")
    resumed = run(arguments, tmp_path / "run")
    undisturbed = whole.wait()
    assert (resumed.code, resumed.err) == (undisturbed.code, undisturbed.err) == (0, "")
    assert "resuming from step" in resumed.out
    expected = sorted((tmp_path / "whole" / "runs").iterdir())
    found = sorted((tmp_path / "run" / "runs").iterdir())
    assert [folder.name for folder in found] == [folder.name for folder in expected]
    assert len(expected) == 1 + len(_chain(arguments))
    for ours, theirs in zip(found, expected, strict=True):
        for file in FILES:
            assert (ours / file).read_bytes() == (theirs / file).read_bytes(), f"{ours.name}: {file}"


def _chain(arguments: list[str]) -> set[str]:
    """Return the names of all runs that come first, with those that come before them."""
    names: set[str] = set()
    waiting = prerequisite_runs(configure(*arguments))
    while waiting:
        config = waiting.pop()
        names.add(run_name(config))
        waiting += prerequisite_runs(config)
    return names
