"""What a submission holds, and what is refused; submissions to a real SLURM are in tests/slurm."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from filelock import FileLock

from kdschemes import cli
from kdschemes.config.load import load_config
from kdschemes.storage.naming import run_name
from kdschemes.study.prerequisites import with_prerequisites
from kdschemes.study.record import add_submission, read_study_folder, remember, write_study
from kdschemes.study.slurm import submit
from kdschemes.study.slurm.arrays import PlannedArray, plan
from kdschemes.study.spec import StudyRun, read_study
from kdschemes.study.status import Row, Status
from tests.study.conftest import Answer

TEXT = """
question: Does a teacher help?
base: {scheme: offline, train.epochs: 2, teacher: resnet20}
variants: {kd: {}, ce: {scheme: supervised}}
seeds: [0, 1]
"""
CHAIN = """
question: Does a chain help?
base: {scheme: offline, model: resnet20, teacher: resnet56}
variants: {kd: {}, takd: {method: takd, "scheme.assistants": [resnet32]}, ce: {scheme: supervised}}
"""


def planned(
    folder: Path, text: str, states: Mapping[str, str], jobs: Mapping[str, str] | None = None
) -> tuple[list[PlannedArray], list[StudyRun]]:
    """Plan a study whose runs are in the given states, by model and variant; the others were not submitted."""
    path = folder / "mine.yaml"
    path.write_text(text)
    file = read_study(path, [], recipes=folder)
    runs = with_prerequisites(file)
    study = remember(folder / "runs" / "studies" / "mine", file, runs)
    rows = []
    for run, entry in zip(runs, study.entries, strict=True):
        name = title(run)
        rows.append(Row(entry=entry, state=states.get(name, "not begun"), job=(jobs or {}).get(name)))
    return plan(runs, Status(study=study, rows=tuple(rows), asked=True)), runs


def title(run: StudyRun) -> str:
    return run.config.model.name if run.earlier else run.label.removesuffix(" seed=0")


def shape(arrays: list[PlannedArray]) -> list[tuple[str, list[str], tuple[int, ...], tuple[str, ...]]]:
    return [(array.name, [title(run) for run in array.runs], array.after, array.after_elements) for array in arrays]


def test_runs_wait_for_those_that_teach_them_and_for_no_others(tmp_path: Path) -> None:
    arrays, _ = planned(tmp_path, CHAIN, {})
    assert shape(arrays) == [
        ("mine-earlier", ["resnet56"], (), ()),
        ("mine", ["ce"], (), ()),
        ("mine-earlier", ["resnet32"], (0,), ()),
        ("mine", ["kd"], (0,), ()),
        ("mine", ["takd"], (2,), ()),
    ]


@pytest.mark.parametrize(
    ("states", "jobs", "expected"),
    [
        ({"resnet56": "finished"}, {}, [["resnet32"], ["kd", "ce"], ["takd"]]),
        ({"resnet56": "finished", "takd": "queued", "ce": "running"}, {}, [["kd"]]),
        ({"kd": "finished", "takd": "finished", "ce": "failed"}, {}, [["ce"]]),
        ({"kd": "finished", "takd": "finished", "ce": "finished", "resnet56": "failed"}, {}, []),
        ({"resnet56": "interrupted", "resnet32": "finished"}, {}, [["resnet56"], ["takd", "ce"], ["kd"]]),
    ],
)
def test_only_what_is_left_is_taken(
    states: dict[str, str], jobs: dict[str, str], expected: list[list[str]], tmp_path: Path
) -> None:
    arrays, _ = planned(tmp_path, CHAIN, states, jobs)
    assert [[title(run) for run in array.runs] for array in arrays] == expected


def test_a_teacher_that_is_under_way_is_waited_for(tmp_path: Path) -> None:
    arrays, _ = planned(tmp_path, CHAIN, {"resnet56": "running", "takd": "finished"}, {"resnet56": "7_0"})
    assert shape(arrays) == [("mine", ["ce"], (), ()), ("mine", ["kd"], (), ("7_0",))]


def test_dry_run_prints_the_commands_and_writes_nothing(clone: Path, answer: Answer) -> None:
    before = sorted(clone.rglob("*"))
    overrides = ["data.val_fraction=0.3", "output_dir=there"]
    extra = ["--time=2:00", "-N", "2"]
    code, out, err = answer("study", "submit", "mine", *overrides, "--parallel", "4", "--dry-run", "--", *extra)
    assert (code, err) == (0, "")
    assert sorted(clone.rglob("*")) == before
    lines = out.splitlines()
    folder = clone / "there" / "studies" / "mine"
    assert lines[0] == f"site file: none ({clone / 'slurm' / 'site.sh'} is not there; kdschemes init writes one)"
    shared = ["--open-mode=append", f"--export=ALL,KDSCHEMES_SCRIPTS={clone}"]
    log = f"--output={folder}/logs/%x-%A_%a.out"
    script, wait = str(clone / "slurm" / "study.sbatch"), ["--dependency=afterok:JOB0", "--kill-on-invalid-dep=yes"]

    def array(name: str, last: int, number: int, after: list[str]) -> list[str]:
        words = [f"--job-name={name}", f"--array=0-{last}%4", log, *shared, *after, "--time=2:00", "-N2"]
        return ["sbatch", "--parsable", *words, script, str(folder / "submissions" / str(number))]

    report = [f"--output={folder}/logs/%x-%j.out", *shared, "--dependency=afterany:JOB0:JOB1:JOB2"]
    report += [str(clone / "slurm" / "report.sbatch"), str(folder)]
    assert [shlex.split(line) for line in lines[1:5]] == [
        array("mine-earlier", 0, 1, []),
        array("mine", 1, 2, []),
        array("mine", 1, 3, wait),
        ["sbatch", "--parsable", "--job-name=mine-report", *report],
    ]
    words = "scheme=offline train.epochs=2 teacher=resnet20 seed=1 data.val_fraction=0.3 output_dir=there"
    assert f"   1  kd seed=1: {words}" in lines
    teacher = next(line for line in lines if "supervised-ce-digits-resnet20-seed0-" in line)
    assert teacher.startswith("   0  supervised-ce-digits-resnet20-seed0: ")
    assert "not submitted" not in out


def test_dry_run_names_the_site_file_and_leaves_out_finished_runs(clone: Path, answer: Answer) -> None:
    (clone / "slurm" / "site.sh").touch()
    words = ["scheme=offline", "train.epochs=2", "scheme=supervised", "seed=1"]
    run = clone / "runs" / run_name(load_config(words, recipes=clone))
    run.mkdir(parents=True)
    (run / "results.json").write_text('{"heads": {}, "primary_head": "student"}')
    _, out, _ = answer("study", "submit", "mine", "--dry-run")
    lines = out.splitlines()
    assert lines[0] == f"site file: {clone / 'slurm' / 'site.sh'}"
    assert "--array=0-0 " in lines[2]
    assert lines[-2:] == ["not submitted", "      ce seed=1: finished"]


def test_what_is_submitted_before_is_taken_up(clone: Path, answer: Answer) -> None:
    folder = clone / "runs" / "studies" / "mine"
    path = clone / "experiments" / "studies" / "mine.yaml"
    file = read_study(path, ["train.epochs=3"], recipes=clone)
    folder.mkdir(parents=True)
    write_study(remember(folder, file, file.runs))
    _, out, _ = answer("study", "submit", "mine", "--dry-run")
    assert out.splitlines()[0] == "overrides as before: train.epochs=3"
    assert "seed=1 train.epochs=3" in out
    _, same, _ = answer("study", "submit", "mine", "train.epochs=3", "--dry-run")
    assert same == out.partition("\n")[2]
    code, _, err = answer("study", "submit", "mine", "train.epochs=4", "--dry-run")
    assert code == 2
    assert "was started with train.epochs=3, and 4 of its runs would change now: give the same" in err
    _, out, _ = answer("study", "submit", "mine", "train.epochs=4", "output_dir=other", "--dry-run")
    assert "train.epochs=4" in out
    path.write_text(TEXT.replace("[0, 1]", "[0, 2]"))
    _, out, _ = answer("study", "submit", "mine", "--dry-run")
    assert "seed=2 train.epochs=3" in out


def test_runs_that_left_the_study_are_reported(clone: Path, answer: Answer) -> None:
    folder = clone / "runs" / "studies" / "mine"
    path = clone / "experiments" / "studies" / "mine.yaml"
    folder.mkdir(parents=True)
    file = read_study(path, [], recipes=clone)
    write_study(remember(folder, file, file.runs))
    path.write_text(TEXT.replace("[0, 1]", "[0]"))
    _, out, _ = answer("study", "submit", "mine", "--dry-run")
    assert out.splitlines()[0] == f"2 earlier runs are no longer in {path}"


def test_all_finished_is_said(clone: Path, answer: Answer) -> None:
    (clone / "experiments" / "studies" / "mine.yaml").write_text("{question: Q, base: {scheme: supervised}}")
    run = clone / "runs" / run_name(load_config(["scheme=supervised"], recipes=clone))
    run.mkdir(parents=True)
    (run / "results.json").write_text('{"heads": {}, "primary_head": "student"}')
    for more in (["--dry-run"], []):
        assert answer("study", "submit", "mine", *more) == (0, "nothing to submit: 1 run: 1 finished\n", "")
    study = read_study_folder(clone / "runs" / "studies" / "mine")
    assert [entry.folder for entry in study.entries] == [run.name]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], ["unknown study 'nothing'", "mine"]),
        (["mine", "train.epoch=3"], ["mine.yaml: run 'kd seed=0': unknown key 'train.epoch'"]),
        (["mine", "--", "--array=0-3"], ["--array=0-3: kdschemes study submit sets --array itself"]),
        (["mine", "--", "-o", "log"], ["-o: kdschemes study submit sets -o itself"]),
        (["mine", "--", "--dep=afterok:3"], ["--dep=afterok:3: kdschemes study submit sets --dep itself"]),
        (["mine", "--", "--job-name", "x"], ["--job-name: kdschemes study submit sets"]),
        (["mine", "--", "-Ha", "0-3"], ["-Ha: kdschemes study submit sets -a itself"]),
        (["mine", "--", "script.sh"], ["script.sh: only sbatch options may follow --", "slurm/study.sbatch"]),
        (["mine", "--", "--time=1", "script.sh"], ["script.sh: only sbatch options may follow --"]),
        (["mine", "--", "-N", "2", "script.sh"], ["script.sh: only sbatch options may follow --"]),
        (["mine", "--", "-N2", "script.sh"], ["script.sh: only sbatch options may follow --"]),
        (["mine", "--", "-H", "script.sh"], ["script.sh: only sbatch options may follow --"]),
        (["mine", "--", "--", "script.sh"], ["--: only sbatch options may follow --"]),
        (["mine", "--", "-"], ["-: only sbatch options may follow --"]),
        (["mine", "--parallel", "0"], ["--parallel", "'0' is not a whole number from 1"]),
        (["mine", "--dryrun"], ["unrecognized arguments: --dryrun"]),
        (["mine"], ["sbatch is not on this machine"]),
    ],
)
def test_refused_and_nothing_is_recorded(arguments: list[str], words: list[str], clone: Path, answer: Answer) -> None:
    code, out, err = answer("study", "submit", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert [word for word in words if word not in err] == []
    assert not (clone / "runs").exists()


def test_without_sbatch_at_the_site_nothing_is_recorded(clone: Path, answer: Answer) -> None:
    (clone / "bash").symlink_to(shutil.which("bash", path=os.defpath) or "")
    (clone / "slurm" / "site.sh").write_text(f"PATH={clone}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(clone))
        code, out, err = answer("study", "submit", "mine")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "sbatch: not found" in err
    assert not (clone / "runs").exists()


def test_a_value_cannot_become_the_batch_script(clone: Path, answer: Answer) -> None:
    extra = ["--hold", "script.sh", "--time", "2:00", "-HN", "2", "-x", "node7", "--exclusive"]
    _, out, _ = answer("study", "submit", "mine", "--dry-run", "--", *extra)
    words = shlex.split(out.splitlines()[1])
    assert words[-7:-2] == ["--hold=script.sh", "--time=2:00", "-HN2", "-xnode7", "--exclusive"]
    assert words[-2] == str(clone / "slurm" / "study.sbatch")


def test_where_slurm_does_not_answer_nothing_is_submitted_twice(clone: Path, answer: Answer) -> None:
    folder = clone / "runs" / "studies" / "mine"
    folder.mkdir(parents=True)
    add_submission(folder, {"arrays": [{"job": "7", "name": "mine", "runs": ["x"]}]})
    code, _, err = answer("study", "submit", "mine")
    assert code == 2
    assert "scontrol is not on this machine" in err
    assert "the queue is unknown, so nothing was submitted" in err
    assert len((folder / "jobs.jsonl").read_text().splitlines()) == 1
    code, out, _ = answer("study", "submit", "mine", "--dry-run")
    assert code == 0
    assert out.splitlines()[-1].endswith("states are from folders and logs only")


@pytest.fixture
def sbatch(clone: Path) -> None:
    """An `sbatch` that is there and answers, before anything is submitted with it."""
    program = clone.parent / "sbatch"
    program.write_text("#!/bin/sh\n[ $1 = --version ]\n")
    program.chmod(0o755)


@pytest.mark.usefixtures("sbatch")
def test_two_submissions_at_once_are_one_after_the_other(
    clone: Path, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = clone / "runs" / "studies" / "mine"
    folder.mkdir(parents=True)
    monkeypatch.setattr(submit, "LOCK_PATIENCE", 0.1)
    with FileLock(folder / "lock"):
        code, _, err = answer("study", "submit", "mine")
    assert code == 2
    assert "is in use by another kdschemes study run or submit: wait for it" in err


@pytest.mark.usefixtures("sbatch")
def test_a_folder_that_cannot_be_made_is_reported(clone: Path, answer: Answer) -> None:
    (clone / "runs").write_text("no folder")
    code, _, err = answer("study", "submit", "mine")
    assert code == 2
    assert "cannot be written: " in err


def test_outside_a_clone_the_one_that_is_installed_is_used(clone: Path, answer: Answer) -> None:
    (clone / "slurm" / "study.sbatch").unlink()
    installed = Path(cli.__file__).resolve().parents[1]
    code, out, err = answer("study", "submit", str(clone / "experiments" / "studies" / "mine.yaml"), "--dry-run")
    assert (code, err) == (0, "")
    assert f"KDSCHEMES_SCRIPTS={installed}" in out
    assert out.count("sbatch --parsable") == 4
