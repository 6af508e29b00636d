"""SLURM's commands: `scontrol show job`, `sbatch`, `scancel`. No accounting database is needed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdschemes.errors import UserError

PATIENCE = 60.0
"""Timeout of a SLURM command in seconds."""

WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")

OVER = (
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "DEADLINE"),
    *("PREEMPTED", "REVOKED", "LAUNCH_FAILED"),
)

TELLING = ("DependencyNeverSatisfied", "JobLaunchFailure", "NodeDown", "SystemFailure", "InvalidAccount", "InvalidQOS")
"""Reasons that say why a job ended; others are left over from when it was pending."""

FORGOTTEN = "Invalid job id specified"


class SlurmUnavailable(UserError):
    """SLURM is not installed, or does not respond."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job or an array task, whose `job` is `ARRAYID_TASKID`. `reason` is empty if there is none."""

    job: str
    name: str
    state: str
    reason: str
    restarts: int
    exit_code: str

    @property
    def waits(self) -> bool:
        return self.state in WAITING

    @property
    def over(self) -> bool:
        return self.state in OVER

    @property
    def ending(self) -> str:
        """How it ended, in SLURM's words: state, reason, exit code, or signal."""
        code, _, signal = self.exit_code.partition(":")
        words = [self.state]
        if self.reason in TELLING:
            words.append(self.reason)
        if signal not in ("", "0"):
            words.append(f"signal {signal}")
        elif code not in ("", "0"):
            words.append(f"exit code {code}")
        return ", ".join(words)


def parse_jobs(text: str) -> dict[str, Job]:
    """Return the jobs in the output of `scontrol -o show job` by ID, with one entry per pending array task."""
    jobs: dict[str, Job] = {}
    for line in text.splitlines():
        facts = dict(reversed(re.findall(r"(\S+?)=(\S*)", line)))  # keep the first of each key: user text comes last
        if "JobId" not in facts:
            continue
        array, task = facts.get("ArrayJobId"), facts.get("ArrayTaskId")
        numbers = [f"{array}_{n}" for n in task_numbers(task)] if array and task else [facts["JobId"]]
        reason = facts.get("Reason", "None")
        for number in numbers:
            jobs[number] = Job(
                job=number,
                name=facts.get("JobName", ""),
                state=facts.get("JobState", ""),
                reason="" if reason == "None" else reason,
                restarts=int(facts.get("Restarts", 0)),
                exit_code=facts.get("ExitCode", ""),
            )
    return jobs


def task_numbers(text: str) -> list[int]:
    """Return the task IDs that SLURM writes as `0,4-7,10-20:5%2` (`:5` is a step, `%2` the concurrency limit)."""
    numbers: list[int] = []
    for part in text.partition("%")[0].split(","):
        ends, _, step = part.partition(":")
        first, _, last = ends.partition("-")
        numbers += range(int(first), int(last or first) + 1, int(step or 1))
    return numbers


def available() -> bool:
    return shutil.which("scontrol") is not None


def own_job() -> str | None:
    """Return the ID of this process's job, `ARRAYID_TASKID` in an array; None outside a job."""
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def known_jobs(numbers: Iterable[str]) -> dict[str, Job]:
    """Return what SLURM still knows about these jobs and arrays; it forgets those that ended some time ago.

    Raises:
        SlurmUnavailable: SLURM is not installed, or does not respond.
    """
    jobs: dict[str, Job] = {}
    for number in numbers:
        # SLURM_BITSTR_LEN=0: do not truncate long lists of task IDs
        answer = _run(["scontrol", "-o", "show", "job", number], {"SLURM_BITSTR_LEN": "0"})
        if answer.returncode == 0:
            jobs |= parse_jobs(answer.stdout)
        elif FORGOTTEN not in answer.stderr:
            raise SlurmUnavailable(f"scontrol: {_line(answer.stderr) or f'exit code {answer.returncode}'}")
    return jobs


def sbatch(words: Sequence[str], site: Path | None) -> str:
    """Submit a job with `sbatch --parsable WORDS`, after sourcing the site's file; return its ID.

    Raises:
        UserError: sbatch fails; the message is its own.
    """
    answer = _run_at_site(["sbatch", "--parsable", *words], site)
    number = answer.stdout.strip().splitlines()[-1].partition(";")[0] if answer.stdout.strip() else ""
    if answer.returncode != 0 or not number.isdecimal():
        said = _line(answer.stderr) or _line(answer.stdout) or f"exit code {answer.returncode}"
        raise UserError(f"sbatch: {said.removeprefix('sbatch: error: ')}; nothing was submitted")
    return number


def check_sbatch(site: Path | None) -> None:
    """Check that there is an `sbatch` to submit jobs with.

    Raises:
        SlurmUnavailable: there is none, or it does not respond.
    """
    if (answer := _run_at_site(["sbatch", "--version"], site)).returncode != 0:
        raise SlurmUnavailable(f"sbatch: {_line(answer.stderr) or f'exit code {answer.returncode}'}")


def cancel(numbers: Sequence[str]) -> None:
    """Cancel jobs.

    Raises:
        SlurmUnavailable: they could not be canceled.
    """
    if numbers and (answer := _run(["scancel", *numbers], {})).returncode != 0:
        raise SlurmUnavailable(f"scancel: {_line(answer.stderr)}; cancel the jobs {', '.join(numbers)} by hand")


def _run_at_site(command: Sequence[str], site: Path | None) -> subprocess.CompletedProcess[str]:
    return _run(command if site is None else ["bash", "-c", '. "$0"; exec "$@"', str(site), *command], {})


def _run(command: Sequence[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
            check=False,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        raise SlurmUnavailable(f"{command[0]} is not on this machine: submit SLURM jobs from a cluster") from None
    except subprocess.TimeoutExpired:
        raise SlurmUnavailable(f"{command[0]} did not respond within {PATIENCE:.0f} s") from None


def _line(text: str) -> str:
    """Return an error message on one line, without sbatch's closing remark."""
    lines = [line.removeprefix("sbatch: error: ") for line in text.splitlines() if line.strip()]
    return "; ".join(line for line in lines if not line.startswith("Batch job submission failed: Unspecified"))
