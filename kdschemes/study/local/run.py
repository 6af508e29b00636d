"""`kdschemes study run`: run the remaining runs of a study on this machine, then report."""

from __future__ import annotations

import math
import shlex
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from kdschemes.errors import UserError
from kdschemes.printable import printable
from kdschemes.study.locate import OpenStudy, open_study, recipes
from kdschemes.study.record import LOCK, write_study
from kdschemes.study.spec import StudyRun
from kdschemes.study.status import ACTIVE, Status, counts, left_out, number_of, status
from kdschemes.study.tracking import give_finished
from kdschemes.training.signals import StopSignal

if TYPE_CHECKING:
    from kdschemes.study.local.packs import Pack
    from kdschemes.study.local.resources import Slot

LOCK_PATIENCE = 2.0
"""Seconds to wait for a submission of the same study, which takes moments."""


def study_here(
    name: str,
    overrides: Sequence[str],
    *,
    parallel: int | None,
    memory: float | None,
    dry_run: bool,
    report: Callable[[Path], bool],
) -> int:
    """Run the remaining runs of a study, print progress, report, and return the process's exit code.

    `parallel` workers train at once (None: one per GPU, two on CPU), within `memory` bytes in total (None: most of the
    free memory). Without overrides, those with which the study was started are used. With `dry_run` nothing is written
    or run. `report` writes the report of the study in a folder and returns whether it could.

    Raises:
        UserError: a mistake in the study or the overrides; another process runs the study.
    """
    with StopSignal() as stop:
        opened = open_study(name, overrides, recipes=recipes())
        folder = opened.study.folder
        for note in opened.notes:
            print(printable(note), flush=True)
        if dry_run:
            print(printable(_dry_run(opened, parallel, memory), lines=True))
            return 0
        lock = FileLock(folder / LOCK, timeout=LOCK_PATIENCE)
        try:
            (folder / "logs").mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            raise UserError(f"{folder} is in use by another kdschemes study run or submit: wait for it") from None
        except OSError as error:
            raise UserError(f"{folder} cannot be written: {error.strerror or error}") from None
        try:
            return _run(opened, stop, parallel, memory, report)
        except KeyboardInterrupt:
            print("stopped immediately; the same command resumes from the last checkpoints", flush=True)
            return 128 + signal.SIGINT
        finally:
            lock.release()


def to_run(runs: Sequence[StudyRun], found: Status) -> list[StudyRun]:
    """Return the runs to train here, in order: those that are not finished, and their prerequisites.

    Runs that SLURM has queued or is running, and runs that need those, are left out.
    """
    rows = found.by_folder
    by_name = {run.folder: run for run in runs}
    elsewhere = {name for name, row in rows.items() if row.state in ACTIVE and row.job is not None}
    taken: set[str] = set()

    def take(name: str) -> bool:
        """Add a run and its prerequisites; return False if SLURM has one of them."""
        if rows[name].state == "finished" or name in taken:
            return True
        if name in elsewhere or not all(take(need) for need in by_name[name].needs):
            return False
        taken.add(name)
        return True

    for run in runs:
        if not run.earlier:
            take(run.folder)
    return [run for run in runs if run.folder in taken]


def _packs(runs: Sequence[StudyRun], parallel: int | None, memory: float | None) -> tuple[list[Pack], list[Slot], str]:
    """Return the packs of runs, the slots in which they run, and a line that describes both."""
    from kdschemes.study.local.packs import make_packs
    from kdschemes.study.local.resources import free_bytes, make_slots

    configs = [run.config for run in runs]
    slots = make_slots(parallel, configs)
    limit = (memory or free_bytes(configs)) / len(slots)
    packs = make_packs(runs, workers=len(slots), limit=limit)
    parted = len(packs) > len(make_packs(runs, workers=len(slots), limit=math.inf))
    if len(packs) < len(slots):
        slots = make_slots(len(packs), configs)
    summary = f"{number_of('run', len(runs))} in {number_of('pack', len(packs))}, {len(slots)} at once"
    room, largest = f"{limit / 1e9:.1f} GB of memory each", max(pack.bytes for pack in packs)
    if largest > limit:
        summary += f", in {room}, although a run takes up to {largest / 1e9:.1f} GB: lower --parallel or raise --memory"
    elif parted:
        summary += f", split to fit {room}"
    return packs, slots, summary


def _run(
    opened: OpenStudy, stop: StopSignal, parallel: int | None, memory: float | None, report: Callable[[Path], bool]
) -> int:
    from kdschemes.study.local.scheduler import BUDGET, Scheduler

    study = opened.study
    write_study(study)
    found = status(study)
    runs = to_run(opened.runs, found)
    packs, slots, summary = _packs(runs, parallel, memory) if runs else ([], [], "")
    print(f"{study.name}: {printable(study.question)}\n{counts(found.rows)}", flush=True)
    if found.note:
        print(printable(found.note), flush=True)
    give_finished(opened.runs, found)
    if packs:
        print(f"to train: {summary}", flush=True)
    hours = opened.file.keys.hours
    deadline = None if hours is None else time.monotonic() + 3600 * hours
    finished = {row.entry.folder for row in found.rows if row.state == "finished"}
    scheduler = Scheduler(study, packs, slots, finished=finished, stop=stop, deadline=deadline)
    scheduler.run()
    reported = report(study.folder)
    last = status(study)
    for row in last.rows:
        if row.entry.folder in scheduler.failed or row.entry.folder in scheduler.stopped:
            print(printable(f"{row.entry.label}: {row.state}, {row.reason}"))
    print(counts(last.rows), flush=True)
    if isinstance(scheduler.ended, signal.Signals):
        print(printable(f"stopped by {scheduler.ended.name}; the same command resumes: {study.folder}"), flush=True)
        return 128 + scheduler.ended
    if scheduler.ended == BUDGET:
        print(f"the budget of {hours:g} h is used up; the same command resumes with the same budget", flush=True)
    return 0 if reported and scheduler.ended is None and not scheduler.failed and not scheduler.stopped else 1


def _dry_run(opened: OpenStudy, parallel: int | None, memory: float | None) -> str:
    """Return what would run: each pack with its runs and their overrides, then what is left out."""
    found = status(opened.study)
    runs = to_run(opened.runs, found)
    lines = []
    if runs:
        packs, _, summary = _packs(runs, parallel, memory)
        lines.append(summary)
        pack_numbers = {run.folder: number for number, pack in enumerate(packs, start=1) for run in pack.runs}
        for number, pack in enumerate(packs, start=1):
            after = sorted({str(pack_numbers[need]) for need in pack.needs if need in pack_numbers})
            wait = f", after pack {', '.join(after)}" if after else ""
            lines += ["", f"pack {number}: {number_of('run', len(pack.runs))}{wait}"]
            lines += [f"      {run.label}: {shlex.join(run.overrides) or run.folder}" for run in pack.runs]
    taken = {run.folder for run in runs}
    return "\n".join([*lines, *left_out(found, taken, "not run")])
