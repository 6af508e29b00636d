"""What a run left behind: its progress, and why it stopped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from kdschemes.config.parse import parse_json

TAIL = 1 << 18
"""Number of bytes read from the end of a log."""

ERROR = re.compile(r"error: (.+)")

TRACE = re.compile(r"(.*?)Traceback \(most recent call last\):")

RESTARTS = re.compile("the same command resumes: |DUE TO (JOB REQUEUE|PREEMPTION|NODE FAILURE)|^job .*, start [0-9]+, ")
"""What a run, SLURM or a batch script writes into a log when a job stops to be started again, or starts."""

RUN_ENDS = re.compile(r"(\S+) ends: (.+)")
"""What a pack logs when one of its runs fails and the others continue."""

LAUNCHER = re.compile(r"[^:]*(CalledProcessError|ChildFailedError|SignalException)(:|$)")
"""Exceptions that `accelerate launch` raises on top of the run's own."""

PEER_LOST = re.compile("Connection (closed|reset) by peer|NCCL|DistBackendError")

ENDED = re.compile(r"CalledProcessError: Command '.*' (?P<how>(returned|died).*)")

ROOT_CAUSE = re.compile(
    r"Root Cause.*?rank +: (?P<rank>\d+).*?exitcode +: (?P<code>-?\d+) \(pid: \d+\) *(\((?P<signal>\w+)\))?", re.DOTALL
)

REMARK = re.compile(r"(?:slurmstepd\S*|srun): error: (.+)")


def interruption(run: Path) -> str | None:
    """Return in words what stopped a run that can resume, from its file `interrupted`; None if there is none."""
    try:
        found = parse_json((run / "interrupted").read_bytes())
        return f"{found['signal']} after step {found['step']} of {found['total_steps']}"
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, KeyError):
        return "stopped by a signal"


def epochs_done(run: Path, epochs: int) -> float:
    """Return how many epochs a run has trained, from the last complete line of its `metrics.jsonl`."""
    for line in reversed(_tail(run / "metrics.jsonl").split(b"\n")[:-1]):
        try:
            row = parse_json(line)
            return float(epochs if row["kind"] == "final" else row["epoch"])
        except (ValueError, TypeError, KeyError):
            continue
    return 0.0


def failed_in_pack(log: Path) -> dict[str, str]:
    """Return by folder name the runs of a pack that failed while others continued, and why."""
    return {found[1]: found[2] for line in _lines(log) if (found := RUN_ENDS.match(line))}


def error_in(log: Path) -> str | None:
    """Return the error that a log ends with: its last line `error: ...`, else what the last traceback ends with.

    Ignored are lines from before the job was last restarted, errors that `accelerate launch` adds, and those of
    processes that lost their connection to a failed one.
    """
    lines = _lines(log)
    errors = [found[1].strip() for line in lines if (found := ERROR.match(line))]
    own = [text for text in _raised(lines) if not LAUNCHER.match(text) and not PEER_LOST.search(text)]
    return (errors or own or [None])[-1]


def exit_in(log: Path) -> str | None:
    """Return what else a log says about a run's end: a process's signal or exit code, SLURM's remark."""
    lines = _lines(log)
    raised = _raised(lines)
    first = ROOT_CAUSE.search("\n".join(lines))
    if first is not None and first["signal"]:
        return f"process {first['rank']} was ended by {first['signal']}"
    left_alone = [text for text in raised if PEER_LOST.search(text)]
    ended = [f"the run {found['how']}" for text in raised if (found := ENDED.search(text))]
    code = [f"process {first['rank']} ended with exit code {first['code']}"] if first is not None else []
    remarks = [found[1] for line in lines if (found := REMARK.match(line))]
    return next((found[-1] for found in (left_alone, ended, code, remarks) if found), None)


def _lines(log: Path) -> list[str]:
    """Return the lines of a log since the job was last restarted."""
    lines = _tail(log).decode(errors="replace").splitlines()
    begin = max((number for number, line in enumerate(lines) if RESTARTS.search(line)), default=-1)
    return lines[begin + 1 :]


def _raised(lines: Sequence[str]) -> list[str]:
    """Return the exception of each traceback, without the process prefix of each line."""
    found = []
    for number, line in enumerate(lines):
        if (begin := TRACE.match(line)) is None:
            continue
        for after in lines[number + 1 :]:
            text = after.removeprefix(begin[1])
            if text.strip() and not text[0].isspace():
                found.append(text.strip())
                break
    return found


def _tail(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL))
            return file.read()
    except OSError:
        return b""
