"""Born-again networks: fresh weights in every generation, chains of runs, the ensemble of generations."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml

from kdschemes.config import Config
from kdschemes.config.prerequisites import prerequisite_runs, with_teachers
from kdschemes.core.nodes import ProbabilityEnsemble
from kdschemes.core.types import Output
from kdschemes.errors import UserError
from kdschemes.models import create_model, save_weights
from kdschemes.schemes import build_scheme
from kdschemes.storage.naming import run_name
from tests.processes import Started, run
from tests.schemes.cases import (
    DATA_SPEC,
    START,
    base,
    batch_for,
    build,
    configure,
    network_of,
    random_batch,
    same_state,
)
from tests.schemes.formulas import Formula, Seen
from tests.schemes.self_distillation.formulas import hard, soft_ce
from tests.training.test_loop import FILES, pair

pytestmark = pytest.mark.slow

BAN, TFKD = base("self", "ban", "convnet"), base("self", "tfkd_self", "convnet")
PLAIN = base("supervised", "ce", "convnet")
SMALL = [
    "data.val_fraction=0.9",
    "data.train_fraction=1",
    "train.batch_size=32",
    "train.num_threads=1",
    "train.checkpoint_every_steps=1",
]


def expected_total(seen: Seen) -> float:
    temperature, alpha = seen.config.losses.response.temperature, seen.config.scheme.alpha
    soft = temperature**2 * soft_ce(seen.logits("student"), seen.logits("teacher"), temperature=temperature)
    return (1 - alpha) * hard(seen) + alpha * soft


FORMULA: Formula = expected_total
EXACT = {
    "ban-other": [*base("self", "ban"), "scheme.generations=1", "scheme.alpha=0.4", "losses.response.temperature=2"],
}
VARIANTS = {"self-ban-first-hint": [*base("self", "ban"), "scheme.generations=1", "losses.feature=hint"]}


def test_generations_are_the_runs_that_the_user_would_name() -> None:
    options = ["seed=5", "train.epochs=3", "losses.feature=hint", "output_dir=elsewhere"]
    third = configure(*BAN, *options)
    names = [run_name(earlier) for earlier in prerequisite_runs(third)]
    alone = [configure(*BAN, *options, f"scheme.generations={number}") for number in (1, 2)]
    assert names == [run_name(config) for config in alone]
    assert {run.output_dir for run in prerequisite_runs(third)} == {"elsewhere"}
    plain = configure(*PLAIN, "seed=5", "train.epochs=3")
    for first in (alone[0], configure(*TFKD, *options)):
        assert [run_name(earlier) for earlier in prerequisite_runs(first)] == [run_name(plain)]
    assert prerequisite_runs(plain) == []


def test_chains_of_different_seeds_share_nothing_and_ignore_the_teacher_of_a_recipe(tmp_path: Path) -> None:
    chains = [{run_name(earlier) for earlier in prerequisite_runs(configure(*BAN, f"seed={seed}"))} for seed in (0, 1)]
    assert not chains[0] & chains[1]
    (tmp_path / "mine.yaml").write_text("teacher: {name: resnet20, checkpoint: nowhere}\n")
    config = configure(f"experiment={tmp_path / 'mine.yaml'}", *BAN)
    assert run_name(config) == run_name(configure(*BAN))
    assert prerequisite_runs(config)[1].scheme == prerequisite_runs(configure(*BAN))[1].scheme
    assert with_teachers(config, None).teacher.checkpoint is None


def test_every_generation_has_its_own_initial_weights() -> None:
    plain = network_of(build(*PLAIN), "student")
    starts = [network_of(build(*BAN, f"scheme.generations={number}"), "student") for number in (1, 2, 3)]
    for one, other in itertools.combinations([plain, *starts], 2):
        assert not same_state(one, other)
    assert same_state(starts[2], network_of(build(*BAN, "losses.response=kd"), "student"))
    assert not same_state(starts[2], network_of(build(*BAN, "seed=1"), "student"))
    assert not same_state(plain, network_of(build(*TFKD), "student"))
    assert same_state(plain, network_of(build(*TFKD), "teacher"))


def saved(folder: Path, count: int, model: str = "convnet") -> list[str]:
    """Write networks with different weights and return their folders."""
    with torch.random.fork_rng(devices=[]):
        for number in range(count):
            torch.manual_seed(100 + number)
            save_weights(create_model(model, num_classes=10, channels=1, image_size=8), folder / str(number))
    return [str(folder / str(number)) for number in range(count)]


def built(config: Config, folders: list[str]) -> dict[str, torch.nn.Module]:
    scheme = build_scheme(with_teachers(config, folders), DATA_SPEC)
    return {name: network_of(scheme, name) for name in scheme.nodes if name != "ensemble"}


def test_the_last_earlier_run_teaches_and_the_others_are_in_the_ensemble(tmp_path: Path) -> None:
    config, folders = configure(*BAN, "scheme.generations=4"), saved(tmp_path, 3)
    assert len(prerequisite_runs(config)) == 3
    networks = built(config, folders)
    assert list(networks) == ["generation1", "generation2", "teacher", "student"]
    for folder, name in zip(folders, ("generation1", "generation2", "teacher"), strict=True):
        expected = build(*PLAIN, f"model.checkpoint={folder}", dtype=torch.float32)
        assert same_state(networks[name], network_of(expected, "student")), name
    for overrides in ([*BAN, "scheme.generations=1"], TFKD):
        first = configure(*overrides)
        assert list(built(first, folders[:1])) == ["teacher", "student"]
        assert build_scheme(first, DATA_SPEC).heads == ("student",)
    with pytest.raises(UserError, match="does not fit convnet"):
        built(config, [*folders[:2], *saved(tmp_path / "other", 1, "resnet20")])


def test_the_ensemble_is_the_mean_of_probabilities_and_no_part_of_training() -> None:
    scheme, batch = build(*BAN), random_batch()
    assert scheme.heads == ("student", "ensemble")
    assert scheme(batch_for(scheme), START).outputs.keys() == {"student", "teacher"}
    out = {name: output.logits for name, output in scheme.eval().predict(batch, ["ensemble"]).items()}
    mean = torch.stack([out[name].softmax(1) for name in ("generation1", "teacher", "student")]).mean(0)
    torch.testing.assert_close(out["ensemble"].exp(), mean, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_ensemble_of_huge_logits_is_finite_in_float32(dtype: torch.dtype) -> None:
    huge = torch.tensor([[1e4, -1e4, 0.0]], dtype=dtype)
    outputs = {"a": Output(huge), "b": Output(-huge), "c": Output(0 * huge)}
    node = ProbabilityEnsemble("ensemble", ["a", "b", "c"])
    logits = node(random_batch(n=1), outputs)["ensemble"].logits
    assert logits.dtype == torch.float32
    assert logits.exp()[0].tolist() == pytest.approx([4 / 9, 4 / 9, 1 / 9], rel=1e-5)


ARGUMENTS = [*BAN, "scheme.generations=2", "train.epochs=1", *SMALL]


def folder_of(place: Path, *arguments: str) -> Path:
    return place / "runs" / run_name(configure(*arguments))


PLAIN_RUN = [*PLAIN, "train.epochs=1", *SMALL]
FIRST_RUN = [*ARGUMENTS, "scheme.generations=1"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a chain of three uninterrupted runs."""
    place = tmp_path_factory.mktemp("chain") / "whole"
    ended = run(ARGUMENTS, place)
    assert (ended.code, ended.err) == (0, "")
    assert {folder.name for folder in (place / "runs").iterdir()} == {
        folder_of(place, *arguments).name for arguments in (PLAIN_RUN, FIRST_RUN, ARGUMENTS)
    }
    return place


def same_files(folder: Path, other: Path) -> None:
    for name in FILES:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name


def test_results_name_the_generation_that_taught(whole: Path) -> None:
    results = json.loads((folder_of(whole, *ARGUMENTS) / "results.json").read_text())
    assert results["primary_head"] == "student"
    assert list(results["heads"]) == ["student", "ensemble", "teacher"]
    assert [Path(folder).name for folder in results["teacher_checkpoint"]] == [folder_of(whole, *FIRST_RUN).name]
    taught = json.loads((folder_of(whole, *FIRST_RUN) / "results.json").read_text())
    for split in ("val", "test"):
        ours, theirs = results["heads"]["teacher"]["last"][split], taught["heads"]["student"]["last"][split]
        assert ours["top1"] == theirs["top1"]
        assert ours["nll"] == pytest.approx(theirs["nll"], rel=1e-6)
    assert results["cost"]["ensemble"]["parameters"] == 2 * results["cost"]["student"]["parameters"]
    assert "teacher" not in yaml.safe_load((folder_of(whole, *ARGUMENTS) / "config.yaml").read_text())


def test_a_chain_killed_in_its_second_generation_resumes_there(whole: Path, tmp_path: Path) -> None:
    place = tmp_path / "run"
    last = folder_of(place, *ARGUMENTS)
    process = Started(ARGUMENTS, place)
    while process.running and not (last / "checkpoint.pt").exists():
        time.sleep(0.001)
    process.signal(signal.SIGKILL)
    assert process.wait().code == -signal.SIGKILL
    assert not (last / "results.json").exists()
    written = {path: path.stat().st_mtime_ns for path in place.glob("runs/*/model.safetensors")}
    assert {path.parent for path in written} >= {folder_of(place, *PLAIN_RUN), folder_of(place, *FIRST_RUN)}
    ended = run(ARGUMENTS, place)
    assert (ended.code, ended.err) == (0, "")
    assert f"this run is already finished: runs/{folder_of(place, *FIRST_RUN).name}" in ended.out
    assert ended.out.count("resuming from step") == 1
    assert all(path.stat().st_mtime_ns == time_then for path, time_then in written.items() if path.parent != last)
    for arguments in (PLAIN_RUN, FIRST_RUN, ARGUMENTS):
        same_files(folder_of(place, *arguments), folder_of(whole, *arguments))


def test_the_stored_configuration_of_a_generation_runs_again_and_finds_its_teacher(whole: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(whole, tmp_path / "run"))
    last = folder_of(place, *ARGUMENTS)
    shutil.move(last / "config.yaml", tmp_path / "config.yaml")
    shutil.rmtree(last)
    ended = run([f"experiment={tmp_path / 'config.yaml'}"], place)
    assert (ended.code, ended.err) == (0, "")
    assert f"this run is already finished: runs/{folder_of(place, *FIRST_RUN).name}" in ended.out
    same_files(last, folder_of(whole, *ARGUMENTS))


def test_two_processes_train_a_chain(tmp_path: Path) -> None:
    arguments = [*BAN, "scheme.generations=1", "train.epochs=1", *SMALL, "device=cpu"]
    first, second = pair(arguments, tmp_path / "run")
    assert (first.code, second.code, first.err, second.err) == (0, 0, "", "")
    results = json.loads((folder_of(tmp_path / "run", *arguments) / "results.json").read_text())
    assert results["processes"] == 2
    plain = folder_of(tmp_path / "run", *PLAIN, "train.epochs=1", *SMALL, "device=cpu")
    assert [Path(folder).name for folder in results["teacher_checkpoint"]] == [plain.name]
