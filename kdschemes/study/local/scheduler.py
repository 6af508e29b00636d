"""Packs of a study on this machine: workers train each as soon as its prerequisites are finished."""

from __future__ import annotations

import contextlib
import queue
import signal
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdschemes.config.naming import to_tree
from kdschemes.storage import lease
from kdschemes.storage.results import read_results
from kdschemes.study import run_logs as traces
from kdschemes.study.local.console import StudyConsole, result_line
from kdschemes.study.local.eta import Left, Speed
from kdschemes.study.local.packs import Pack
from kdschemes.study.local.resources import Slot
from kdschemes.study.local.workers import Messages, Worker
from kdschemes.study.record import Study, read_failures, write_failures
from kdschemes.study.spec import StudyRun
from kdschemes.training.signals import StopSignal

PATIENCE = 1.0
"""Seconds between checks of folders, signals and the clock."""

BUDGET = "budget"


@dataclass
class ActivePack:
    """A pack in training.

    `epochs` are those of its runs at the last check; `mark` is when progress was first seen, and its epochs by then;
    `closing` is when all epochs were seen to be trained.
    """

    pack: Pack
    slot: int
    log: Path
    epochs: float
    mark: tuple[float, float] | None = None
    closing: float | None = None


class Scheduler:
    """Trains packs to the end, in order.

    Attributes:
        finished: Names of the folders of finished runs.
        failed: Why runs failed or were not started, by the names of their folders.
        stopped: The same for runs that were stopped from outside and can resume.
        ended: What stopped it before all was done: a signal, or the budget.
    """

    def __init__(
        self,
        study: Study,
        packs: Sequence[Pack],
        slots: Sequence[Slot],
        *,
        finished: Iterable[str],
        stop: StopSignal,
        deadline: float | None = None,
    ) -> None:
        """`deadline` is when the budget is used up, by `time.monotonic`."""
        self.finished: set[str] = set(finished)
        self.failed: dict[str, str] = {}
        self.stopped: dict[str, str] = {}
        self.ended: signal.Signals | str | None = None
        self._study, self._slots, self._stop, self._deadline = study, slots, stop, deadline
        self._console = StudyConsole(len(study.entries), len(self.finished))
        self._entries = {entry.folder: entry for entry in study.entries}
        self._epochs = {name: traces.epochs_done(study.output / name, of.epochs) for name, of in self._entries.items()}
        self._waiting = list(packs)
        self._active: dict[Worker, ActivePack] = {}
        self._workers: dict[int, Worker] = {}
        self._messages: Messages = queue.SimpleQueue()
        self._speed = Speed()
        self._held: set[str] = set()

    def run(self) -> None:
        """Train until nothing is left that can be trained, or until it is stopped.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed twice; the workers were killed.
            UserError: the study's folder can't be written.
        """
        try:
            while self._active or (self._waiting and self.ended is None):
                self._drop_hopeless()
                self._end_if_asked()
                if self.ended is None:
                    self._begin()
                self._listen()
                self._look()
        except KeyboardInterrupt:
            for worker in self._workers.values():
                worker.process.send_signal(signal.SIGKILL)
            raise
        finally:
            for worker in self._workers.values():
                worker.close()
            for worker in self._workers.values():
                worker.process.wait()
            self._console.stop()

    def _drop_hopeless(self) -> None:
        """Fail the packs that need a run that will not be finished."""
        lost = self.failed.keys() | self.stopped.keys()
        while hopeless := next((pack for pack in self._waiting if pack.needs & lost), None):
            self._waiting.remove(hopeless)
            for run in hopeless.runs:
                need = next(need for need in run.needs if need in lost)
                self._fail(run.folder, f"not started: it needs '{self._entries[need].label}', which is not finished")
            lost = self.failed.keys() | self.stopped.keys()

    def _begin(self) -> None:
        """Assign packs that can start to free slots."""
        busy = {active.slot for active in self._active.values()}
        free = [number for number in range(len(self._slots)) if number not in busy]
        for pack in list(self._waiting):
            if not free:
                return
            if pack.needs <= self.finished and not self._is_held(pack):
                self._waiting.remove(pack)
                self._start(pack, free.pop(0))

    def _is_held(self, pack: Pack) -> bool:
        """Return whether another process trains one of its runs, such as the remaining workers of a killed process."""
        for run in pack.runs:
            holder = lease.holder(self._study.output / run.folder)
            if holder is not None and holder.fresh:
                if run.folder not in self._held:
                    label = self._entries[run.folder].label
                    self._console.line(f"{label} is being trained by {holder}: waiting for it")
                self._held.add(run.folder)
                return True
        return False

    def _start(self, pack: Pack, number: int) -> None:
        slot, log = self._slots[number], self._new_log()
        config = pack.runs[0].config
        kind = (config.precision, config.device, config.train.deterministic)  # what a process cannot change
        worker = self._workers.get(number)
        if worker is not None and worker.kind != kind:
            worker.close()
        if worker is None or worker.kind != kind:
            worker = self._workers[number] = Worker(self._messages, log, slot.environment, kind)
        names = [run.folder for run in pack.runs]
        old = read_failures(self._study.folder)
        if not old.keys().isdisjoint(names):
            write_failures(self._study.folder, {name: why for name, why in old.items() if name not in names})
        self._active[worker] = ActivePack(pack, number, log, sum(self._epochs[name] for name in names))
        cores = sorted({core for each in self._slots for core in each.cores}) if self._alone(pack) else slot.cores
        # Folders are taken in one order everywhere: two studies with the same runs never wait for each other.
        runs = [to_tree(run.config) for run in sorted(pack.runs, key=lambda run: run.folder)]
        worker.give({"runs": runs, "log": str(log), "cores": cores})

    def _alone(self, pack: Pack) -> bool:
        """Return whether nothing else can run alongside a pack: all that is left depends on it."""
        coming = {run.folder for run in pack.runs}
        left = list(self._waiting)
        while later := [other for other in left if other.needs & coming]:
            coming |= {run.folder for other in later for run in other.runs}
            left = [other for other in left if other not in later]
        return not left and not self._active

    def _new_log(self) -> Path:
        logs = self._study.folder / "logs"
        numbers = [log.stem.removeprefix("pack-") for log in logs.glob("pack-*.out")]
        log = logs / f"pack-{1 + max((int(number) for number in numbers if number.isdecimal()), default=0)}.out"
        log.touch()
        return log

    def _listen(self) -> None:
        """Receive messages from workers, for a limited time."""
        with contextlib.suppress(queue.Empty):
            worker, said = self._messages.get(timeout=PATIENCE)
            while True:
                self._take(worker, said)
                worker, said = self._messages.get_nowait()

    def _take(self, worker: Worker, said: dict[str, object] | None) -> None:
        if said is None:
            self._workers = {number: other for number, other in self._workers.items() if other is not worker}
            if (active := self._active.pop(worker, None)) is not None:
                self._left_alone(active, worker)
        elif "over" in said:
            self._measure(self._active.pop(worker))
        elif "failed" in said:
            self._fail(str(said["run"]), str(said["failed"]))
        else:
            self._finish_if_done(str(said["run"]))

    def _left_alone(self, active: ActivePack, worker: Worker) -> None:
        """Record the outcome of each run of a pack whose process has ended."""
        log = active.log.relative_to(self._study.folder)
        error = traces.error_in(active.log)
        memory = " (out of memory?)" if worker.ending.endswith("SIGKILL") else ""
        reason = f"{error} (log: {log})" if error else f"its process {worker.ending}{memory} (log: {log})"
        for run in active.pack.runs:
            folder = self._study.output / run.folder
            if run.folder in self.failed or self._finish_if_done(run.folder):
                continue
            stopped = traces.interruption(folder)
            if stopped is not None or self.ended is not None:
                self.stopped[run.folder] = stopped or "stopped before its first checkpoint"
                if self.ended is None:
                    self._console.line(f"{self._entries[run.folder].label}: stopped from outside by {stopped}")
            else:
                self._fail(run.folder, reason)

    def _look(self) -> None:
        """Check the progress of runs and report it."""
        for active in self._active.values():
            for name, reason in traces.failed_in_pack(active.log).items():
                self._fail(name, reason)
            for run in active.pack.runs:
                if run.folder not in self.failed and not self._finish_if_done(run.folder):
                    epochs = self._entries[run.folder].epochs
                    self._epochs[run.folder] = traces.epochs_done(self._study.output / run.folder, epochs)
            self._measure(active)
        if self.ended is not None:
            return
        ended = self.finished | self.failed.keys()
        total = sum(entry.epochs for entry in self._entries.values())
        done = sum(of.epochs if name in ended else self._epochs[name] for name, of in self._entries.items())
        training = [[run for run in active.pack.runs if run.folder not in ended] for active in self._active.values()]
        left = self._speed.left(
            [self._left(runs) for runs in training], [self._left(pack.runs) for pack in self._waiting], len(self._slots)
        )
        self._console.update(done / total, left, sum(map(len, training)))

    def _left(self, runs: Iterable[StudyRun]) -> Left:
        return [(run, self._entries[run.folder].epochs - self._epochs[run.folder]) for run in runs]

    def _measure(self, active: ActivePack) -> None:
        now, names = time.monotonic(), [run.folder for run in active.pack.runs]
        done = sum(self._epochs[name] for name in names)
        ended = sum(name in self.finished for name in names)
        if active.closing is not None and ended:
            self._speed.closed((now - active.closing) / ended)
        elif active.mark is None and done > active.epochs:
            active.mark = now, done
        elif active.mark is not None and done > active.epochs:
            self._speed.measured(active.pack.runs, (now - active.mark[0]) / (done - active.mark[1]))
        if active.closing is None and done == sum(self._entries[name].epochs for name in names):
            active.closing = now
        active.epochs = done

    def _end_if_asked(self) -> None:
        """Notify the workers once of a signal or of the end of the budget: they save and exit."""
        if self.ended is not None:
            return
        if self._stop.received is not None:
            self.ended = self._stop.received
        elif self._deadline is not None and time.monotonic() >= self._deadline and (self._active or self._waiting):
            self.ended = BUDGET
        else:
            return
        if self._active:
            why = self.ended.name if isinstance(self.ended, signal.Signals) else "the budget is used up"
            self._console.line(f"{why}: saving the active runs")
        for worker in self._active:
            worker.process.send_signal(signal.SIGTERM)

    def _finish_if_done(self, name: str) -> bool:
        """Return whether a run has results, and report it the first time."""
        if name in self.finished:
            return True
        try:
            results = read_results(self._study.output / name)
        except (OSError, ValueError):
            results = None
        if results is None:
            return False
        self.finished.add(name)
        self._epochs[name] = self._entries[name].epochs
        self._console.run_ended(self._entries[name].title, result_line(results))
        return True

    def _fail(self, name: str, reason: str) -> None:
        if name in self.failed:
            return
        reason = " ".join(reason.splitlines())
        self.failed[name] = reason
        write_failures(self._study.folder, read_failures(self._study.folder) | {name: reason})
        self._console.run_ended(
            self._entries[name].title, reason if reason.startswith("not started") else f"failed: {reason}"
        )
