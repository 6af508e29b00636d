"""SLURM's answers, recorded from a real SLURM 22.05 with two nodes, and what is made of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdschemes.distributed import slurm
from kdschemes.distributed.slurm import known_jobs, parse_jobs, sbatch, task_numbers
from kdschemes.errors import UserError
from tests import REPOSITORY

RECORDED = (REPOSITORY / "tests" / "distributed" / "scontrol.txt").read_text()
JOBS = parse_jobs(RECORDED)


@pytest.mark.parametrize(
    ("number", "ending", "restarts"),
    [
        ("1_1", "FAILED, exit code 2", 0),
        ("1_2", "COMPLETED", 1),
        ("1_3", "FAILED, JobLaunchFailure, signal 9", 0),
        ("1_4", "CANCELLED, signal 15", 0),
        ("1_5", "TIMEOUT, signal 15", 0),
        ("1_9", "COMPLETED", 0),
        ("3_0", "CANCELLED, DependencyNeverSatisfied", 0),
        ("3_2", "CANCELLED, DependencyNeverSatisfied", 0),
        ("17", "COMPLETED", 0),
        ("49_0", "NODE_FAIL, NodeDown", 0),
    ],
)
def test_jobs_that_are_over(number: str, ending: str, restarts: int) -> None:
    job = JOBS[number]
    assert (job.over, job.waits, job.ending, job.restarts) == (True, False, ending, restarts)


@pytest.mark.parametrize(
    ("number", "state", "reason", "restarts", "waits"),
    [
        ("1_0", "PENDING", "BeginTime", 1, True),
        ("50_0", "PENDING", "JobArrayTaskLimit", 1, True),
        ("50_1", "RUNNING", "", 0, False),
        ("50_2", "PENDING", "JobArrayTaskLimit", 0, True),
        ("50_59", "PENDING", "JobArrayTaskLimit", 0, True),
    ],
)
def test_jobs_that_are_not(number: str, state: str, reason: str, restarts: int, waits: bool) -> None:
    job = JOBS[number]
    assert (job.over, job.waits) == (False, waits)
    assert (job.state, job.reason, job.restarts, job.name) == (
        state,
        reason,
        restarts,
        "demo" if number == "1_0" else "wide",
    )


def test_waiting_array_tasks_are_listed_one_by_one() -> None:
    waiting = [int(number.partition("_")[2]) for number in JOBS if number.startswith("50_")]
    cancelled = range(3, 45, 2)
    assert sorted(waiting) == [n for n in range(60) if n not in cancelled]
    assert not any(job.name == "" or job.state == "" for job in JOBS.values())


def test_what_users_write_is_not_taken_for_a_state() -> None:
    (line,) = (line for line in RECORDED.splitlines() if line.startswith("JobId=17 "))
    job = parse_jobs(line.replace("rep.sbatch WorkDir", "rep.sbatch JobState=FAILED WorkDir"))["17"]
    assert job.state == "COMPLETED"
    assert parse_jobs("No jobs in the system\n") == {}


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("3", [3]),
        ("0,4-7", [0, 4, 5, 6, 7]),
        ("4-7%2", [4, 5, 6, 7]),
        ("1-9:4,20%1", [1, 5, 9, 20]),
    ],
)
def test_elements_as_slurm_writes_them(text: str, numbers: list[int]) -> None:
    assert task_numbers(text) == numbers


def test_without_slurm_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(slurm.SlurmUnavailable, match="scontrol is not on this machine"):
        known_jobs(["1"])
    with pytest.raises(UserError, match="sbatch is not on this machine"):
        sbatch(["job.sh"], None)
    assert known_jobs([]) == {}
