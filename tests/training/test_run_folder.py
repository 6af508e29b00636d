"""What is deleted or renamed while a run trains is said as what it is, by the next step that notices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kdschemes import cli
from kdschemes.training.run import Run

pytestmark = pytest.mark.slow

SHORT = [
    *(
        "scheme=supervised",
        "data.val_fraction=0.95",
        "data.train_fraction=1",
        "train.batch_size=32",
        "train.epochs=4",
        "train.num_threads=1",
    ),
    *("train.checkpoint_every_steps=2", "train.log_every_steps=1"),
]
Change = Callable[[Path], object]


@pytest.fixture
def train_and(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> object:
    """Train a run and change something in its folder after its first checkpoint; return exit code, folder, errors."""

    def run(change: Change) -> tuple[int, Path, str]:
        save, changed = Run.save, []

        def save_and_change(run: Run) -> None:
            save(run)
            if not changed:
                changed.append(change(run.folder))

        with monkeypatch.context() as patch:
            patch.setattr(Run, "save", save_and_change)
            code = cli.train([*SHORT, f"output_dir={tmp_path / 'runs'}"])
        name = min(path.name for path in (tmp_path / "runs").iterdir()).removesuffix("-moved")
        return code, tmp_path / "runs" / name, capsys.readouterr().err

    return run


def moved(folder: Path) -> None:
    folder.rename(f"{folder}-moved")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (moved, "{folder} was deleted or renamed: this process stops and writes nothing more there"),
        (
            lambda folder: (moved(folder), folder.mkdir()),
            "{folder}/lease-1, by which this process held the folder, was",
        ),
        (lambda folder: (folder / "lease-1").unlink(), "{folder}/lease-1, by which this process held the folder, was"),
        (
            lambda folder: (folder / "metrics.jsonl").unlink(),
            "{folder}/metrics.jsonl was deleted or renamed while this",
        ),
    ],
)
def test_a_run_that_lost_its_folder_or_log_says_so(
    change: Change, words: str, train_and: Callable[[Change], tuple[int, Path, str]]
) -> None:
    code, folder, err = train_and(change)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(f"error: {words.format(folder=folder)}")
    assert "another process" not in err


def test_a_run_writes_again_what_it_can(train_and: Callable[[Change], tuple[int, Path, str]]) -> None:
    names = ("checkpoint.pt", "config.yaml")
    code, folder, err = train_and(lambda folder: [(folder / name).unlink() for name in names])
    assert (code, err) == (0, "")
    assert all((folder / name).is_file() for name in names)


def test_deleted_weights_of_the_best_epoch_are_named(
    train_and: Callable[[Change], tuple[int, Path, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "record_validation", best_is_the_first(Run.record_validation))
    code, folder, err = train_and(lambda folder: [path.unlink() for path in folder.glob("best-epoch*")])
    assert code == 2
    assert err == (
        f"error: {folder}/best-epoch0001.pt is damaged (it was deleted or renamed): weights of the run cannot be read; "
        f"restore it from a copy, or delete {folder} to train the run again\n"
    )


def best_is_the_first(record: Callable[..., None]) -> Callable[..., None]:
    def recorded(run: Run, epoch: int, metrics: dict[str, dict[str, float]]) -> None:
        better = {head: values | {"top1": 100.0 - epoch} for head, values in metrics.items()}
        record(run, epoch, better)

    return recorded
