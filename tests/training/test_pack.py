"""Students that are trained together: each is bit for bit what it is alone, and the teacher answers a batch once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from kdschemes.config import Config
from kdschemes.config.load import load_config
from kdschemes.core.frozen import Frozen
from kdschemes.core.types import Batch
from kdschemes.errors import TrainingStopped
from kdschemes.models import create_model
from kdschemes.storage.checkpoint import CHECKPOINT, load_state
from kdschemes.storage.naming import run_name
from kdschemes.storage.predictions import read_predictions
from kdschemes.training.signals import StopSignal
from kdschemes.training.train import Failed, Finished, train, train_together
from tests import REPOSITORY

pytestmark = pytest.mark.slow

BYTES = ("model.safetensors", "metrics.jsonl", "predictions.safetensors", "best/model.safetensors")
SHORT = (
    "train.num_threads=1",
    "train.batch_size=64",
    "model=resnet20",
    "data.val_fraction=0.1",
    "data.train_fraction=0.3",
)
STUDENTS = {
    "alpha": ("scheme.alpha=0.3",),
    "clipped and longer": ("losses.response.temperature=8", "optim.clip_grad_norm=0.5", "train.epochs=3"),
    "hint and average": ("losses.feature=hint", "train.ema=0.9", "train.eval_every_epochs=2"),
    "preactivations, no best": ("losses.feature=ofd", "optim.lr=0.01", "optim.name=adamw"),
}


def read(output: Path, *overrides: str) -> Config:
    return load_config([*SHORT, *overrides, f"output_dir={output}"], recipes=REPOSITORY / "experiments")


def teacher(place: Path) -> str:
    """Return the word that names a trained teacher."""
    folder = train(read(place, "scheme=supervised", "train.epochs=1", "optim.lr=0.05", "seed=7")).folder
    return f"teacher.checkpoint={folder}"


def configure(output: Path, taught: str, *overrides: str) -> Config:
    return read(output, "scheme=offline", "teacher=resnet20", taught, "train.epochs=2", *overrides)


@dataclass(frozen=True)
class Both:
    """Runs alone and together, in two folders, with how often the teacher answered."""

    alone: Path
    together: Path
    taught: str
    answers: dict[str, int]

    def folders(self, name: str) -> tuple[Path, Path]:
        folder = run_name(configure(self.alone, self.taught, *STUDENTS[name]))
        return self.alone / folder, self.together / folder


@pytest.fixture(scope="module")
def answered() -> Iterator[list[str]]:
    """The names of the frozen nodes whose networks really answered, in order."""
    calls: list[str] = []
    original = Frozen.compute

    def counted(self: Frozen, batch: Batch) -> object:
        calls.append(self.provides[0])
        return original(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Frozen, "compute", counted)
        yield calls


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, answered: list[str]) -> Both:
    place = tmp_path_factory.mktemp("lockstep")
    taught = teacher(place)
    alone, together = place / "alone", place / "together"
    counts = {}
    for name, overrides in STUDENTS.items():
        before = len(answered)
        train(configure(alone, taught, *overrides))
        counts[name] = len(answered) - before
    before = len(answered)
    outcomes = train_together([configure(together, taught, *overrides) for overrides in STUDENTS.values()])
    counts["together"] = len(answered) - before
    assert all(isinstance(outcome, Finished) and outcome.ran for outcome in outcomes)
    return Both(alone, together, taught, counts)


def same_bytes(one: Path, other: Path) -> bool:
    return all((one / file).read_bytes() == (other / file).read_bytes() for file in BYTES)


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_among_others_has_the_bytes_of_one_alone(both: Both, name: str) -> None:
    alone, together = both.folders(name)
    assert same_bytes(alone, together)
    one, other = (json.loads((folder / "results.json").read_text()) for folder in (alone, together))
    assert one["heads"] == other["heads"]
    assert (one["pack_size"], other["pack_size"]) == (1, len(STUDENTS))


def test_the_teacher_sees_a_batch_once_for_all_runs(both: Both) -> None:
    each = [both.answers[name] for name in STUDENTS]
    assert max(each) <= both.answers["together"] < 0.5 * sum(each)


def test_predictions_say_what_the_metrics_say(both: Both) -> None:
    folder = both.folders("alpha")[0]
    found = read_predictions(folder)
    assert found is not None
    results = json.loads((folder / "results.json").read_text())
    for head in ("student", "teacher"):
        for split in ("val", "test"):
            answers, labels = found.heads[head][split], found.labels[split]
            assert len(labels) == results["samples"][split]
            last = results["heads"][head]["last"][split]
            assert 100 * (answers.classes == labels).mean() == pytest.approx(last["top1"])
            agreement = (answers.classes == found.heads["teacher"][split].classes).mean()
            assert 100 * agreement == pytest.approx(last["agreement"])
            assert ((answers.confidence > 0.1) & (answers.confidence <= 1)).all()


def test_training_compute_counts_a_backward_pass_as_two(both: Both) -> None:
    results = json.loads((both.folders("alpha")[0] / "results.json").read_text())
    cost = results["cost"]
    assert results["train_macs_per_image"] == 3 * cost["student"]["macs"] + cost["teacher"]["macs"]
    assert cost["student"]["latency_ms"] > 0


def test_one_that_fails_leaves_the_others(both: Both, tmp_path: Path) -> None:
    wild, calm = (configure(tmp_path, both.taught, "train.epochs=1", f"optim.lr={rate}") for rate in (1e30, 0.01))
    failed, finished = train_together([wild, calm])
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, TrainingStopped)
    assert "not finite" in str(failed.error)
    assert isinstance(finished, Finished)
    assert not (failed.folder / "results.json").exists()


class Stops(StopSignal):
    """Stops before a step of its own choice, as a signal would."""

    at = 0

    def requested_on_any_rank(self, also: bool = False) -> bool:
        return also or self.steps >= self.at


def test_a_pack_resumes_from_different_steps_to_the_same_bytes(both: Both, tmp_path: Path) -> None:
    for at, names in ((3, ["alpha"]), (5, [*STUDENTS])):
        stop = Stops()
        stop.at = at
        with pytest.raises(SystemExit):
            train_together([configure(tmp_path, both.taught, *STUDENTS[name]) for name in names], stop)
    steps = [load_state(folder / CHECKPOINT)["step"] for folder in sorted(tmp_path.glob("offline*"))]
    assert sorted(steps) == [2, 2, 2, 3]
    outcomes = train_together([configure(tmp_path, both.taught, *overrides) for overrides in STUDENTS.values()])
    assert all(isinstance(outcome, Finished) for outcome in outcomes)
    assert all(same_bytes(both.folders(name)[0], tmp_path / both.folders(name)[0].name) for name in STUDENTS)


def test_equal_networks_are_recognized() -> None:
    def network(seed: int) -> Frozen:
        torch.manual_seed(seed)
        return Frozen("teacher", create_model("resnet8x4", num_classes=10, channels=1, image_size=8))

    one, twin, other = network(0), network(0), network(1)
    assert one.same_network_as(twin)
    assert not one.same_network_as(other)
    twin.bf16 = True
    assert not one.same_network_as(twin)
