"""Where runs are, by their folders, their logs and recorded answers of SLURM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdschemes import cli
from kdschemes.distributed.slurm import Job
from kdschemes.errors import UserError
from kdschemes.storage.lease import Lease
from kdschemes.study import run_logs as traces
from kdschemes.study.record import (
    ArrayTask,
    Entry,
    Study,
    add_submission,
    read_array_tasks,
    read_study_folder,
    write_study,
)
from kdschemes.study.status import counts, look
from tests.distributed.test_slurm import JOBS

ENTRY = Entry(label="alpha=1 seed=0", folder="run", epochs=4, seed=0)
TRACE = "Traceback (most recent call last):\n"
LAUNCHER = f"""{TRACE}  File "accelerate", line 8, in <module>
    sys.exit(main())
             ^^^^^^
subprocess.CalledProcessError: Command '['python', 'run.py', "experiment='a'"]' {{}}
"""
SEVERAL = """[rank0]: Traceback (most recent call last):
[rank0]:   File "run.py", line 6, in <module>
[rank0]:     x[5]
[rank0]:     ~^^^
[rank0]: {}
[rank1]: Traceback (most recent call last):
[rank1]:   File "run.py", line 9, in <module>
[rank1]: RuntimeError: [gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:6878.
Traceback (most recent call last):
  File "accelerate", line 8, in <module>
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:\x20
============================================================
run.py FAILED
Root Cause (first observed failure):
[0]:
  time      : 2026-11-24_16:44:34
  host      : localhost
  rank      : 0 (local_rank: 0)
  exitcode  : {} (pid: 5633)  {}
  error_file: <N/A>
"""
SECOND = SEVERAL[SEVERAL.index("[rank1]") :]


def job(number: str) -> Job:
    found = JOBS[number]
    return Job(job="7_0", name="study", state=found.state, reason=found.reason, restarts=0, exit_code=found.exit_code)


def element(folder: Path, log: str | None = None) -> ArrayTask:
    path = folder / "study-7_0.out"
    if log is not None:
        path.write_text(log)
    return ArrayTask(job="7_0", name="study", log=path)


def run_folder(folder: Path, *, epochs: float | None = None, **files: object) -> Path:
    run = folder / "run"
    run.mkdir()
    (run / "config.yaml").write_text("seed: 0\n")
    if epochs is not None:
        rows = [{"kind": "train", "step": 1, "epoch": 0.5}, {"kind": "train", "step": 9, "epoch": epochs}]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"kind": "tra')
    for name, content in files.items():
        (run / name.replace("_", ".")).write_text(json.dumps(content))
    return run


@pytest.mark.parametrize(
    ("log", "told", "ended"),
    [
        ("all is well\n", None, None),
        (
            "error: first\nerror: no data in x\n" + LAUNCHER.format("returned non-zero exit status 2."),
            "no data in x",
            2,
        ),
        (f"{TRACE}  File x\nKeyError: 'a'\n" + LAUNCHER.format("returned non-zero exit status 1."), "KeyError: 'a'", 1),
        (LAUNCHER.format("died with <Signals.SIGKILL: 9>."), None, "the run died with <Signals.SIGKILL: 9>."),
        (SEVERAL.format("IndexError: 5", "1", ""), "IndexError: 5", "Connection closed by peer"),
        (SECOND.format("1", ""), None, "Connection closed by peer"),
        (SECOND.format("-9", "(SIGKILL)"), None, "process 0 was ended by SIGKILL"),
        ("slurmstepd-n1: error: *** JOB 9 ON n1 CANCELLED DUE TO TIME LIMIT ***\n", None, "DUE TO TIME LIMIT"),
        ("srun: error: n1: task 0: Out Of Memory\n", None, "n1: task 0: Out Of Memory"),
        ("error: old\nstopped by SIGTERM after step 3; the same command resumes: runs/x\n", None, None),
        ("error: old\nslurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 1 DUE TO JOB REQUEUE ***\n", None, None),
        ("error: old\njob 7_0, start 2, 1 x 1 processes: n1\nerror: new\n", "new", None),
    ],
)
def test_the_end_of_a_log(log: str, told: str | None, ended: str | int | None, tmp_path: Path) -> None:
    path = element(tmp_path, log).log
    assert traces.error_in(path) == told
    found = traces.exit_in(path)
    if isinstance(ended, int):
        ended = f"the run returned non-zero exit status {ended}."
    assert found is None if ended is None else ended in str(found)


def test_a_real_traceback_is_read(tmp_path: Path) -> None:
    program = "try:\n    {}['a']\nexcept KeyError:\n    raise ValueError('two\\nlines')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert traces.error_in(element(tmp_path, done.stderr).log) == "ValueError: two"
    assert traces.error_in(tmp_path / "none") is None
    with (tmp_path / "long").open("w") as file:
        file.write("error: early\n" + "step\n" * traces.TAIL + "error: late\n")
    assert traces.error_in(tmp_path / "long") == "late"


def test_progress_is_that_of_the_last_whole_line(tmp_path: Path) -> None:
    run = run_folder(tmp_path, epochs=2.5)
    assert traces.epochs_done(run, 4) == 2.5
    with (run / "metrics.jsonl").open("a") as file:
        file.write('in": 1}\n{"kind": "final", "which": "best", "epoch": 1}\n')
    assert traces.epochs_done(run, 4) == 4
    assert traces.epochs_done(tmp_path, 4) == 0


def test_states_without_slurm(tmp_path: Path) -> None:
    assert look(tmp_path / "run", ENTRY).state == "not begun"
    run = run_folder(tmp_path, epochs=1.25)
    row = look(run, ENTRY)
    assert (row.state, row.done, row.job, row.reason) == ("interrupted", 1.25, None, "no process is training it")
    (run / "interrupted").write_text('{"signal": "SIGTERM", "step": 3, "total_steps": 9}')
    assert look(run, ENTRY).reason == "SIGTERM after step 3 of 9"
    (run / "results.json").write_text("{")
    row = look(run, ENTRY)
    assert (row.state, row.reason) == ("failed", "results.json is damaged: delete it and run it again")
    (run / "results.json").write_text('{"heads": {}, "primary_head": "student"}')
    row = look(run, ENTRY)
    assert (row.state, row.done, row.reason) == ("finished", 4, "")


def test_a_run_that_a_process_holds_is_running(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    lease = Lease(run)
    assert lease.acquire(asked=lambda: False)
    row = look(run, ENTRY)
    assert row.state == "running"
    assert row.reason.startswith(f"process {os.getpid()} on ")
    lease.release()
    assert look(run, ENTRY).state == "interrupted"


@pytest.mark.parametrize(
    ("recorded", "log", "state", "reason"),
    [
        ("50_2", None, "queued", "JobArrayTaskLimit"),
        ("50_1", "error: told by an earlier job\n", "running", ""),
        ("1_1", "error: no such data\n", "failed", "no such data"),
        ("1_1", "nothing\n", "failed", "FAILED, exit code 2"),
        (
            "1_3",
            LAUNCHER.format("died with <Signals.SIGKILL: 9>."),
            "failed",
            "the run died with <Signals.SIGKILL: 9>. (",
        ),
        ("1_5", "error: hung after this\n", "failed", "hung after this (TIMEOUT, signal 15)"),
        ("1_5", "epoch 1\n", "failed", "TIMEOUT, signal 15"),
        ("1_9", "epoch 1\n", "failed", "ended without a result"),
        ("3_1", None, "failed", "CANCELLED, DependencyNeverSatisfied"),
        ("49_0", "epoch 1\n", "failed", "NODE_FAIL, NodeDown"),
    ],
)
def test_states_by_the_word_of_slurm(recorded: str, log: str | None, state: str, reason: str, tmp_path: Path) -> None:
    row = look(run_folder(tmp_path, epochs=2), ENTRY, [element(tmp_path, log)], {"7_0": job(recorded)})
    assert (row.state, row.job, row.restarts, row.done) == (state, "7_0", 0, 2)
    assert row.reason.startswith(reason)
    if not reason:
        assert row.reason == ""


def test_a_cancelled_run_is_interrupted_where_it_could_save(tmp_path: Path) -> None:
    run = run_folder(tmp_path, interrupted={"signal": "SIGTERM", "step": 3, "total_steps": 9})
    row = look(run, ENTRY, [element(tmp_path, "")], {"7_0": job("1_4")})
    assert (row.state, row.reason) == ("interrupted", "SIGTERM after step 3 of 9 (CANCELLED, signal 15)")
    row = look(run, ENTRY, [element(tmp_path, "error: disk full\n")], {"7_0": job("1_1")})
    assert (row.state, row.reason) == ("failed", "disk full")


def test_what_slurm_has_forgotten_is_read_from_the_log(tmp_path: Path) -> None:
    run = run_folder(tmp_path, epochs=2)
    other = Job(job="7_0", name="another", state="RUNNING", reason="", restarts=3, exit_code="0:0")
    for jobs in ({}, {"7_0": other}):
        row = look(run, ENTRY, [element(tmp_path, "error: no such data\n")], jobs)
        assert (row.state, row.reason, row.restarts) == ("failed", "no such data", None)
    row = look(run, ENTRY, [element(tmp_path, "epoch 1\n")])
    assert (row.state, row.reason) == (
        "failed",
        "ended with no result or error in its log; SLURM no longer knows it",
    )
    (tmp_path / "study-7_0.out").unlink()
    assert look(run, ENTRY, [element(tmp_path)]).reason == "canceled before it started"
    assert look(run, ENTRY, [element(tmp_path)], asked=False).state == "unknown"


@pytest.fixture
def study(tmp_path: Path) -> Study:
    entries = [Entry(label="teacher", folder="t", epochs=2, seed=0, earlier=True)]
    entries += [Entry(label=f"a={n} seed=0", folder=f"r{n}", epochs=2, seed=0, grid={"a": n}) for n in range(3)]
    study = Study(
        folder=tmp_path / "runs" / "studies" / "mine", question="Q?", overrides=("x=1",), entries=tuple(entries)
    )
    study.folder.mkdir(parents=True)
    write_study(study)
    for name in ("t", "r0"):
        (study.output / name).mkdir()
        (study.output / name / "results.json").write_text('{"heads": {}, "primary_head": "student"}')
    return study


def test_a_study_folder_is_read_as_it_was_written(study: Study) -> None:
    assert read_study_folder(study.folder) == study
    first = {"arrays": [{"job": "7", "name": "mine", "runs": ["r0", "r1"]}]}
    second = {
        "arrays": [{"job": "9", "name": "mine-earlier", "runs": ["t"]}, {"job": "10", "name": "mine", "runs": ["r1"]}]
    }
    add_submission(study.folder, first)
    add_submission(study.folder, second)
    found = read_array_tasks(study.folder)
    assert {name: [element.job for element in of] for name, of in found.items()} == {
        "r0": ["7_0"],
        "r1": ["7_1", "10_0"],
        "t": ["9_0"],
    }
    assert found["r1"][1].log == study.folder / "logs" / "mine-10_0.out"
    for line in ("{}", json.dumps({"arrays": [{"job": "7", "name": "../../etc/mine", "runs": ["r0"]}]})):
        (study.folder / "jobs.jsonl").write_text(f"{line}\n")
        with pytest.raises(UserError, match=r"jobs\.jsonl is damaged"):
            read_array_tasks(study.folder)
    whole = (study.folder / "study.yaml").read_text()
    for text in (
        "runs: 3",
        whole.replace("folder: r0", "folder: ../../r0"),
        whole.replace("folder: r0", "folder: /r0"),
    ):
        assert text != whole
        (study.folder / "study.yaml").write_text(text)
        with pytest.raises(UserError, match=r"study\.yaml is damaged: delete it and start the study again"):
            read_study_folder(study.folder)


def test_the_table(
    study: Study, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    add_submission(study.folder, {"arrays": [{"job": "7", "name": "mine", "runs": ["r0", "r1"]}]})
    (study.folder / "logs").mkdir()
    (study.folder / "logs" / "mine-7_1.out").write_text("error: no such data\n")
    for arguments in ([str(study.folder)], ["mine", "--output", str(study.output)]):
        assert cli.main(["study", "status", *arguments]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "mine: Q?"
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:-2]]
        assert cells[0] == ["run", "state", "epochs", "job", "restarts", "reason"]
        assert cells[2:] == [
            ["teacher (prerequisite)", "finished", "2/2", "", "", ""],
            ["a=0 seed=0", "finished", "2/2", "7_0", "", ""],
            ["a=1 seed=0", "failed", "0/2", "7_1", "", "no such data"],
            ["a=2 seed=0", "not begun", "0/2", "", "", ""],
        ]
        assert lines[-2] == "3 runs: 1 finished, 1 failed, 1 not begun; 1 prerequisite: 1 finished"
        assert lines[-1].startswith("scontrol is not on this machine")
        assert lines[-1].endswith("states are from folders and logs only")
    assert counts(()) == ""


def test_a_study_that_is_not_there(
    study: Study, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(study.output.parent)
    assert cli.main(["study", "status", "mime"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown study 'mime'; did you mean 'mine'? (choose from mine")
    assert cli.main(["study", "status", "mine"]) == 0


def test_a_study_that_was_not_begun_is_read_from_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"{{question: Q, base: {{output_dir: {tmp_path / 'there'}}}, seeds: [0, 1]}}")
    assert cli.main(["study", "status", str(file)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 runs: 2 not begun"
    assert sorted(tmp_path.iterdir()) == [file]
