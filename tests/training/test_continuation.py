"""Runs that end early, that continue a finished one, and whose cross-entropy is weighted or smoothed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kdschemes.config import Config
from kdschemes.config.baselines import baseline_runs
from kdschemes.config.load import load_config
from kdschemes.config.prerequisites import prerequisite_runs
from kdschemes.core.distillation import Distillation
from kdschemes.core.nodes import Network
from kdschemes.core.terms import Supervise
from kdschemes.core.types import Batch, DataSpec
from kdschemes.data import open_data
from kdschemes.errors import UserError
from kdschemes.schemes import BUILDERS, build_scheme
from kdschemes.schemes.distill import Edge, distill
from kdschemes.schemes.networks import student_network
from kdschemes.storage.checkpoint import CHECKPOINT, load_state
from kdschemes.storage.naming import run_name
from kdschemes.tracking.metrics_log import read_rows
from kdschemes.training.signals import StopSignal
from kdschemes.training.train import Finished, train, train_together
from tests import REPOSITORY
from tests.processes import SignalAtBatch, run

SHORT = ("model=mlp_32_32", "data.val_fraction=0.5", "train.batch_size=64", "train.num_threads=1", "optim.lr=0.02")

BYTES = ("model.safetensors", "metrics.jsonl", "best/model.safetensors", "predictions.safetensors")


def read(*overrides: str) -> Config:
    return load_config([*SHORT, *overrides], recipes=REPOSITORY / "experiments")


def supervised(output: Path, *overrides: str) -> Config:
    return read("scheme=supervised", f"output_dir={output}", *overrides)


def evaluated(folder: Path) -> list[tuple[int, float]]:
    """Return epoch and top-1 of each evaluation."""
    rows = read_rows(folder / "metrics.jsonl")
    return [(row["epoch"], row["student/top1"]) for row in rows if row["kind"] == "eval"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run of 3 epochs."""
    return train(supervised(tmp_path_factory.mktemp("finished"), "train.epochs=3"))


STALLED = ("train.epochs=9", "train.patience=2", "optim.lr=1e-9", "optim.weight_decay=0")
"""A run that hardly learns: its first epochs differ in rounding of batch statistics only, so that it stops early."""


# ------------------------------------------------------------------------------------------------------------ patience


@pytest.fixture(scope="module")
def stalled(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return train(supervised(tmp_path_factory.mktemp("stalled"), *STALLED))


def test_a_run_without_progress_stops_and_says_so(stalled: Finished) -> None:
    best = stalled.results["heads"]["student"]["best"]["epoch"]
    last = stalled.results["heads"]["student"]["last"]["epoch"]
    assert last == best + 2 < 9
    assert (stalled.results["epochs"], stalled.results["epochs_planned"]) == (last, 9)
    assert [epoch for epoch, _ in evaluated(stalled.folder)] == list(range(1, last + 1))


def test_the_same_command_reports_it_again(
    stalled: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = train(supervised(stalled.folder.parent, *STALLED))
    assert not again.ran
    assert again.results["epochs"] == stalled.results["epochs"]


@pytest.mark.slow
@pytest.mark.parametrize("batch", [20, 27])
def test_an_interrupted_run_stops_at_the_same_epoch(batch: int, stalled: Finished, tmp_path: Path) -> None:
    words = ["scheme=supervised", *SHORT, *STALLED]
    assert run(words, tmp_path, SignalAtBatch(15, batch)).code == 143
    assert run(words, tmp_path).code == 0
    (folder,) = (tmp_path / "runs").iterdir()
    for name in BYTES:
        assert (folder / name).read_bytes() == (stalled.folder / name).read_bytes(), name


@pytest.mark.slow
def test_a_run_with_one_of_timms_optimizers_and_layer_decay_resumes_exactly(tmp_path: Path) -> None:
    words = ["scheme=supervised", *SHORT, "optim=timm/adan", "optim.layer_decay=0.7", "train.epochs=3"]
    alone = train(read(*words[:1], *words[-3:], f"output_dir={tmp_path / 'alone'}"))
    assert run(words, tmp_path, SignalAtBatch(15, 3)).code == 143
    assert run(words, tmp_path).code == 0
    (folder,) = (tmp_path / "runs").iterdir()
    for name in BYTES:
        assert (folder / name).read_bytes() == (alone.folder / name).read_bytes(), name


@pytest.mark.slow
def test_a_run_of_a_pack_that_stops_leaves_the_others_as_they_are(stalled: Finished, tmp_path: Path) -> None:
    other = ("train.epochs=6",)
    with StopSignal() as stop:
        together = train_together(
            [supervised(tmp_path / "pack", *words) for words in (STALLED, other)], stop, wait=False
        )
        alone = train(supervised(tmp_path / "alone", *other), stop)
    for packed, single in zip(together, (stalled, alone), strict=True):
        assert isinstance(packed, Finished)
        for name in BYTES:
            assert (packed.folder / name).read_bytes() == (single.folder / name).read_bytes(), name


def test_patience_needs_a_validation_split(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.patience needs a validation split"):
        train(supervised(tmp_path, "train.patience=2", "data.val_fraction=0"))


# --------------------------------------------------------------------------------------------------------- resume_from


def test_a_finished_run_goes_on_as_a_new_one(finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    parent = finished.folder
    before = {path.name: path.read_bytes() for path in parent.iterdir() if path.is_file()}
    words = (f"resume_from={parent}", "train.epochs=5", "optim.lr=0.01", "optim.weight_decay=0.001")
    config = load_config([*words, f"output_dir={parent.parent}"], recipes=REPOSITORY / "experiments")
    longer = train(config)
    said = capsys.readouterr().out
    assert f"continues from epoch 3 of {parent}: optim.lr 0.02 -> 0.01, optim.weight_decay 0.0005 -> 0.001" in said
    assert "train.epochs 3 -> 5" in said
    assert "the learning rate was " in said
    assert longer.folder.name != parent.name
    assert longer.results["resumed_from"] == parent.name
    assert longer.results["epochs"] == 5
    assert [epoch for epoch, _ in evaluated(longer.folder)] == [4, 5]
    (first, *_) = read_rows(longer.folder / "metrics.jsonl")
    assert (first["kind"], first["epoch"], first["run"]) == ("continued", 3, parent.name)
    assert first["changed"]["train.epochs"] == [3, 5]
    state = load_state(longer.folder / CHECKPOINT)
    assert state["optimizer"]["param_groups"][0]["weight_decay"] == 0.001
    steps = {int(value["step"]) for value in state["optimizer"]["state"].values() if "step" in value}
    assert steps <= {state["step"]}
    assert {path.name: path.read_bytes() for path in parent.iterdir() if path.is_file()} == before


def test_going_on_with_nothing_changed_is_the_longer_run(tmp_path: Path) -> None:
    """With a constant learning rate, 2 epochs and then 2 more are bit for bit 4 epochs."""
    constant = ("optim.lr_schedule=constant", "optim.warmup_epochs=0")
    whole = train(supervised(tmp_path, *constant, "train.epochs=4"))
    half = train(supervised(tmp_path, *constant, "train.epochs=2"))
    rest = train(
        load_config(
            [f"resume_from={half.folder}", "train.epochs=4", f"output_dir={tmp_path}"],
            recipes=REPOSITORY / "experiments",
        )
    )
    assert (rest.folder / "model.safetensors").read_bytes() == (whole.folder / "model.safetensors").read_bytes()
    assert rest.results["heads"]["student"]["last"] == whole.results["heads"]["student"]["last"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train.epochs=3"], "that run has trained 3 epochs: set train.epochs above that"),
        (["train.epochs=5", "model=convnet"], "that run has model.name=mlp_32_32, not convnet, and cannot continue"),
        (["train.epochs=5", "train.batch_size=32"], "that run has train.batch_size=64, not 32"),
        (["train.epochs=5", "seed=1"], "that run has seed=0, not 1"),
        (["train.epochs=5", "scheme=self"], "that run has scheme.name=supervised, not self"),
    ],
)
def test_what_cannot_go_on_is_refused_in_a_line(words: list[str], said: str, finished: Finished) -> None:
    start = [f"resume_from={finished.folder}", f"output_dir={finished.folder.parent}"]
    with pytest.raises(UserError) as error:
        train(load_config([*start, *words], recipes=REPOSITORY / "experiments"))
    assert said in str(error.value)


def test_a_run_that_is_not_finished_is_resumed_by_its_own_command(finished: Finished, tmp_path: Path) -> None:
    folder = tmp_path / finished.folder.name
    folder.mkdir()
    (folder / "config.yaml").write_bytes((finished.folder / "config.yaml").read_bytes())
    with pytest.raises(UserError, match="is not finished; this resumes it: kdschemes train experiment="):
        train(load_config([f"resume_from={folder}", "train.epochs=5"], recipes=REPOSITORY / "experiments"))


def test_a_run_with_more_epochs_names_the_shorter_one(
    finished: Finished, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdschemes.training.train.train_runs", lambda *_, **__: {})
    train(supervised(finished.folder.parent, "train.epochs=4"))
    assert f"a shorter run is finished; resume_from={finished.folder} would continue from it" in capsys.readouterr().out


def test_baselines_and_teachers_do_not_go_on(finished: Finished) -> None:
    config = read("scheme=offline", f"resume_from={finished.folder}", "experiment=digits/study")
    assert all(run.resume_from is None for run in (*baseline_runs(config), *prerequisite_runs(config)))


# ------------------------------------------------------------------------------------- names, cross-entropy, sampling


UNSET = [
    *("train.label_smoothing=0", "train.class_weights=null", "train.patience=null"),
    *("data.sampling=shuffled", "resume_from=null"),
]


@pytest.mark.parametrize("scheme", ["offline", "online", "self", "supervised"])
def test_what_is_not_set_is_not_in_a_runs_name(scheme: str) -> None:
    assert run_name(read(f"scheme={scheme}", *UNSET)) == run_name(read(f"scheme={scheme}"))
    for word in ("train.label_smoothing=0.1", "train.class_weights=balanced", "train.patience=3"):
        assert run_name(read(f"scheme={scheme}", word)) != run_name(read(f"scheme={scheme}"))


def test_a_teacher_trained_first_does_not_depend_on_them() -> None:
    words = ("train.label_smoothing=0.1", "train.class_weights=balanced", "train.patience=3", "data.sampling=balanced")
    teachers = [run_name(prerequisite_runs(read("scheme=offline", *more))[0]) for more in ((), words)]
    assert teachers[0] == teachers[1]


def terms(data_spec: Any, *words: str) -> list[Supervise]:
    scheme = build_scheme(read("model=wrn_16_1", *words), data_spec)
    return [term for term in scheme.terms if isinstance(term, Supervise)]


@pytest.fixture(scope="module")
def spec() -> Any:
    config = read("scheme=supervised")
    return open_data(config.data, seed=0, device=torch.device("cpu")).spec


@pytest.mark.parametrize("scheme", ["online", "self", "self method=dlb", "supervised"])
def test_every_cross_entropy_of_a_scheme_is_smoothed_and_weighted(scheme: str, spec: Any) -> None:
    found = terms(spec, *f"scheme={scheme}".split(), "train.label_smoothing=0.1", "train.class_weights=balanced")
    assert found
    assert all(term.label_smoothing == 0.1 and term.class_weights is not None for term in found)
    assert not any("class_weights" in name for term in found for name in term.state_dict())
    plain = terms(spec, *f"scheme={scheme}".split())
    assert all(term.label_smoothing == 0 and term.class_weights is None for term in plain)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["scheme=supervised", "train.class_weights=[1,2]"], "2 values for 10 classes"),
        (["scheme=supervised", "method=label_smoothing", "train.label_smoothing=0.1"], "both smooth the labels"),
    ],
)
def test_what_has_no_effect_or_does_not_fit_is_refused(words: list[str], said: str, spec: Any) -> None:
    with pytest.raises(UserError) as error:
        terms(spec, *words)
    assert said in str(error.value)


def test_a_method_without_cross_entropy_smooths_no_labels(spec: Any) -> None:
    def without(config: Config, data_spec: DataSpec) -> Distillation:
        return distill(
            {name: Network(name, student_network(config, data_spec, name)) for name in ("student", "other")},
            supervised={},
            edges=[Edge("other", "student")],
            losses=config.losses,
            heads=["student"],
            data_spec=data_spec,
        )

    config = read("scheme=online", "model=wrn_16_1", "train.label_smoothing=0.1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BUILDERS, type(config.scheme), without)
        with pytest.raises(UserError, match="label_smoothing has no effect: this method has no cross-entropy term"):
            build_scheme(config, spec)


def test_two_processes_share_the_batches_of_one() -> None:
    config = read("scheme=supervised", "data.sampling=balanced", "data.mixup=0.4")
    data = open_data(config.data, seed=3, device=torch.device("cpu"))

    def steps(rank: int, world: int) -> list[Batch]:
        sizes = {"batch_size": 50, "grad_accum_steps": 1, "drop_last": False}
        return [batch for (batch,) in data.train_steps(2, rank=rank, world=world, **sizes)]

    whole, parts = steps(0, 1), zip(steps(0, 2), steps(1, 2), strict=True)
    for one, two in zip(whole, parts, strict=True):
        for key in ("index", "images", "partner_labels", "mix"):
            assert torch.equal(getattr(one, key), torch.cat([getattr(part, key) for part in two])), key
    counts = torch.cat([batch.labels for batch in whole]).bincount()
    assert counts.max() - counts.min() <= 1
