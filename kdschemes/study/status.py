"""The state of the runs of a study, from their folders, their logs and SLURM."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kdschemes.distributed import slurm
from kdschemes.storage import lease
from kdschemes.storage.results import read_results
from kdschemes.study import run_logs as traces
from kdschemes.study.record import ArrayTask, Entry, Study, read_array_tasks, read_failures
from kdschemes.tracking.tables import text_table

STATES = ("finished", "running", "queued", "interrupted", "failed", "unknown", "not begun")

ACTIVE = ("running", "queued")

UNFOLDED = 10_000
"""Width without a terminal: a run is one line, however long its reason."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """The state of one run. `done` counts epochs; `restarts` is None if SLURM no longer knows the job."""

    entry: Entry
    state: str
    done: float = 0.0
    job: str | None = None
    restarts: int | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Status:
    """The state of every run of a study, with a note on its source. `asked`: SLURM responded."""

    study: Study
    rows: tuple[Row, ...]
    asked: bool
    note: str = ""

    @cached_property
    def by_folder(self) -> dict[str, Row]:
        """The rows by the folder names of their runs."""
        return {row.entry.folder: row for row in self.rows}


def status(study: Study) -> Status:
    """Determine the state of every run of a study. If SLURM is not here or does not respond, the note says so.

    Raises:
        UserError: the study's folder is damaged.
    """
    submitted, failures = read_array_tasks(study.folder), read_failures(study.folder)
    arrays = {task.job.partition("_")[0] for tasks in submitted.values() for task in tasks}
    note, asked = "", True
    jobs: Mapping[str, slurm.Job] = {}
    try:
        jobs = slurm.known_jobs(sorted(arrays))
    except slurm.SlurmUnavailable as error:
        asked, note = False, f"{error}; states are from folders and logs only"
    rows = []
    for entry in study.entries:
        name = entry.folder
        row = look(study.output / name, entry, submitted.get(name, ()), jobs, asked=asked, failure=failures.get(name))
        rows.append(row)
    return Status(study=study, rows=tuple(rows), asked=asked, note=note)


def look(
    run: Path,
    entry: Entry,
    submitted: Sequence[ArrayTask] = (),
    jobs: Mapping[str, slurm.Job] | None = None,
    *,
    asked: bool = True,
    failure: str | None = None,
) -> Row:
    """Determine the state of a run from its folder, the elements as which it was submitted, and SLURM's view of these.

    `failure` is why it failed if it was last run without SLURM.
    """
    jobs = jobs if jobs is not None else {}
    known = {e.job: jobs[e.job] for e in submitted if e.job in jobs and jobs[e.job].name == e.name}
    active = [job for job in known.values() if not job.over]
    last = active[-1].job if active else submitted[-1].job if submitted else None
    job = known.get(last) if last is not None else None

    def row(state: str, reason: str = "", done: float | None = None) -> Row:
        restarts = job.restarts if job is not None else None
        done = traces.epochs_done(run, entry.epochs) if done is None else done
        return Row(entry=entry, state=state, done=done, job=last, restarts=restarts, reason=reason)

    try:
        if read_results(run) is not None:
            return row("finished", done=float(entry.epochs))
    except (OSError, ValueError):
        return row("failed", "results.json is damaged: delete it and run it again")
    if job is not None and not job.over:
        return row("queued" if job.waits else "running", job.reason)
    holder = lease.holder(run)
    if holder is not None and holder.fresh:
        return row("running", str(holder))
    if failure is not None:
        return row("failed", failure)
    why = traces.error_in(submitted[-1].log) if submitted else None
    if why is not None:
        return row("failed", why if job is None or job.state in ("FAILED", "COMPLETED") else f"{why} ({job.ending})")
    stopped = traces.interruption(run)
    if stopped is not None:
        return row("interrupted", f"{stopped} ({job.ending})" if job is not None else stopped)
    if submitted:
        return row(*_why_over(submitted[-1], job, asked))
    if (run / "config.yaml").exists():
        return row("interrupted", f"last held by {holder}" if holder is not None else "no process is training it")
    return row("not begun")


def _why_over(element: ArrayTask, job: slurm.Job | None, asked: bool) -> tuple[str, str]:
    """Return state and reason for a run whose last job is over or unknown and left neither result nor error."""
    ended = traces.exit_in(element.log)
    if job is not None:
        words = "ended without a result" if job.state == "COMPLETED" else job.ending
        return "failed", f"{ended} ({words})" if ended else words
    if ended:
        return "failed", ended
    if not asked:
        return "unknown", "submitted; nothing more in its folder or its log"
    if element.log.exists():
        return "failed", "ended with no result or error in its log; SLURM no longer knows it"
    return "failed", "canceled before it started"


def table(found: Status) -> str:
    """Return what `kdschemes study status` prints: one row per run, then the counts, then notes."""
    titles = ("run", "state", "epochs", "job", "restarts", "reason")
    rows = [
        (
            row.entry.title,
            row.state,
            f"{int(10 * row.done) / 10:g}/{row.entry.epochs}",
            row.job or "",
            "" if row.restarts is None else str(row.restarts),
            row.reason,
        )
        for row in found.rows
    ]
    shown = text_table(titles, rows, left=("run", "state", "job", "reason"), width=UNFOLDED)
    lines = [f"{found.study.name}: {found.study.question}", shown, counts(found.rows)]
    return "\n".join([*lines, *([found.note] if found.note else [])])


def counts(rows: Sequence[Row]) -> str:
    """Return a line with the number of runs in each state."""
    words = []
    for earlier, what in ((False, "run"), (True, "prerequisite")):
        states = [row.state for row in rows if row.entry.earlier is earlier]
        if states:
            numbers = ", ".join(f"{states.count(state)} {state}" for state in STATES if state in states)
            words.append(f"{number_of(what, len(states))}: {numbers}")
    return "; ".join(words)


def number_of(what: str, count: int) -> str:
    """Return a count in words: `1 run`, `2 runs`."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def left_out(found: Status, taken: Collection[str], title: str) -> list[str]:
    """Return the last lines of a dry run: the runs whose folders are not in `taken`, below a title, then the note."""
    left = [f"      {row.entry.label}: {row.state}" for row in found.rows if row.entry.folder not in taken]
    return [*(["", title, *left] if left else []), *([found.note] if found.note else [])]
