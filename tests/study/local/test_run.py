"""`kdschemes study run` up to the first step: what would be run, and what is refused in one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from filelock import FileLock

from kdschemes.config.load import load_config
from kdschemes.storage.naming import run_name
from kdschemes.study.local import run as here
from kdschemes.study.record import remember, write_study
from kdschemes.study.spec import read_study
from tests.study.conftest import Answer

TEXT = """
question: Does a teacher help?
base: {scheme: offline, train.epochs: 2, teacher: resnet20}
variants: {kd: {}, soft: {scheme.alpha: 1}, ce: {scheme: supervised}}
seeds: [0, 1]
"""


def test_dry_run_prints_the_packs_and_writes_nothing(clone: Path, answer: Answer) -> None:
    before = sorted(clone.rglob("*"))
    code, out, err = answer(
        "study", "run", "mine", "data.val_fraction=0.3", "--parallel", "1", "--memory", "64", "--dry-run"
    )
    assert (code, err) == (0, "")
    assert sorted(clone.rglob("*")) == before
    lines = out.splitlines()
    assert lines[0] == "7 runs in 5 packs, 1 at once"
    assert lines[1:3] == ["", "pack 1: 1 run"]
    waits = {line.partition(": ")[2] for line in lines if line.startswith("pack")}
    assert waits == {"1 run", "2 runs, after pack 1"}
    words = "scheme=offline train.epochs=2 teacher=resnet20 scheme.alpha=1 seed=1 data.val_fraction=0.3"
    assert f"      soft seed=1: {words}" in lines


def test_finished_runs_are_left_out_and_listed(clone: Path, answer: Answer) -> None:
    words = ["scheme=offline", "train.epochs=2", "teacher=resnet20", "scheme=supervised", "seed=1"]
    run = clone / "runs" / run_name(load_config(words[:2] + words[3:], recipes=clone))
    run.mkdir(parents=True)
    (run / "results.json").write_text('{"heads": {}, "primary_head": "student"}')
    _, out, _ = answer("study", "run", "mine", "--dry-run")
    assert out.startswith("6 runs in ")
    assert out.splitlines()[-2:] == ["not run", "      ce seed=1: finished"]


@pytest.mark.parametrize(
    ("memory", "told"),
    [
        ("64", "7 runs in 5 packs, 1 at once"),
        ("1.1", r"7 runs in 7 packs, 1 at once, split to fit 1\.1 GB of memory each"),
        (
            "0.5",
            r".* 1 at once, in 0\.5 GB of memory each, although a run takes up to 1\.\d GB: lower .*",
        ),
    ],
)
def test_how_memory_splits_packs_is_printed(memory: str, told: str, clone: Path, answer: Answer) -> None:
    _, out, _ = answer("study", "run", "mine", "model=convnet", "--parallel", "1", "--memory", memory, "--dry-run")
    assert re.fullmatch(told, out.splitlines()[0])


def test_with_slurm_it_is_submit(clone: Path, answer: Answer) -> None:
    words = ["mine", "train.epochs=3", "--parallel", "4", "--dry-run"]
    submitted = answer("study", "submit", *words, "--", "--time=2:00")
    assert answer("study", "run", *words, "--slurm", "--", "--time=2:00") == submitted
    assert submitted[1].count("--array=0-") == 3
    assert submitted[1].count(" --time=2:00 ") == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mime"], ["unknown study 'mime'; did you mean 'mine'?"]),
        (["mine.yaml"], ["study mine.yaml does not exist"]),
        (["mine", "train.epoch=3"], ["run 'kd seed=0': unknown key 'train.epoch'; did you mean 'train.epochs'?"]),
        (["mine", "model=convnt"], ["unknown model 'convnt'; did you mean 'convnet'?"]),
        (["mine", "seeds=[3]"], ["seeds=[3]: the study file sets it; copy the file and change it there"]),
        (["mine", "--memory", "0"], ["--memory", "'0' is not a number above 0"]),
        (["mine", "--parallel", "two"], ["--parallel", "'two' is not a whole number from 1"]),
        (["mine", "--slurm", "--memory", "3"], ["--mem"]),
        (["mine", "--", "--mem=3G"], ["--mem=3G", "--slurm"]),
        (["mine", "--dryrun"], ["unrecognized arguments: --dryrun"]),
    ],
)
def test_refused_in_one_line(arguments: list[str], words: list[str], clone: Path, answer: Answer) -> None:
    code, out, err = answer("study", "run", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert [word for word in words if word not in err] == []
    assert not (clone / "runs").exists()


def test_overrides_are_those_it_was_begun_with(clone: Path, answer: Answer) -> None:
    file = read_study(clone / "experiments" / "studies" / "mine.yaml", ["train.epochs=3"], recipes=clone)
    folder = clone / "runs" / "studies" / "mine"
    folder.mkdir(parents=True)
    write_study(remember(folder, file, file.runs))
    _, out, _ = answer("study", "run", "mine", "--dry-run")
    assert out.splitlines()[0] == "overrides as before: train.epochs=3"
    code, _, err = answer("study", "run", "mine", "train.epochs=4", "--dry-run")
    assert code == 2
    assert "was started with train.epochs=3, and 6 of its runs would change now: give the same overrides" in err


def test_a_study_in_use_is_refused(clone: Path, answer: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = clone / "runs" / "studies" / "mine"
    folder.mkdir(parents=True)
    monkeypatch.setattr(here, "LOCK_PATIENCE", 0.1)
    with FileLock(folder / "lock"):
        code, out, err = answer("study", "run", "mine")
    assert (code, out) == (2, "")
    assert err == f"error: {folder} is in use by another kdschemes study run or submit: wait for it\n"


def test_a_folder_that_cannot_be_made_is_reported(clone: Path, answer: Answer) -> None:
    (clone / "runs").write_text("no folder")
    code, _, err = answer("study", "run", "mine")
    assert code == 2
    assert re.search(r"cannot be written: \S", err)
