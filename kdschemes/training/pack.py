"""A pack: runs that are trained together on the same batches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

from kdschemes.core.types import Batch
from kdschemes.distributed.collectives import broadcast_from_main
from kdschemes.errors import TrainingStopped, UserError
from kdschemes.evaluation.evaluate import Evaluation, evaluate_together
from kdschemes.tracking.console import Reporter
from kdschemes.training.run import Run
from kdschemes.training.signals import StopSignal


class Pack:
    """Runs with the same `pack_key`; a single run is a pack of one. If a run fails, the others continue.

    Each run has its own scheme, optimizer, folder, log, and checkpoints, and trains bit for bit as it would alone. The
    runs share their batches and the forward passes of identical frozen networks.
    """

    def __init__(self, runs: Sequence[Run], stop: StopSignal, console: Reporter) -> None:
        self.first = runs[0]
        self.active = list(runs)
        self.size = len(runs)
        self.stop, self.console = stop, console
        self.failed: dict[str, UserError | TrainingStopped] = {}
        for run in runs:
            run.pack_size = self.size

    @contextlib.contextmanager
    def isolate(self, run: Run) -> Iterator[None]:
        """Contain the failure of one run: close it and record the error, so that the others continue."""
        try:
            yield
        except (UserError, TrainingStopped) as error:
            self.active.remove(run)
            self.failed[run.folder.name] = error
            run.close(error)
            if self.size > 1:
                self.console.line(f"{run.folder.name} ends: {error}")

    def at(self, step: int) -> list[Run]:
        return [run for run in self.active if run.state.step == step]

    def still_active(self, runs: Sequence[Run]) -> list[Run]:
        """Return those of `runs` that have neither failed nor finished."""
        return [run for run in runs if run in self.active]

    def show_progress(self) -> None:
        if self.active:
            states = [run.state for run in self.active]
            self.console.advance(
                sum(state.step for state in states),
                sum(state.images for state in states),
                sum(state.seconds for state in states),
            )

    def evaluate(
        self,
        runs: Sequence[Run],
        split: str,
        heads: Sequence[str] | None = None,
        *,
        keep_predictions: bool = False,
        at_most: int | None = None,
    ) -> list[Evaluation]:
        """Evaluate the heads of several runs (default: all heads and the teacher) on a split, batch by batch.

        With `at_most`, on as many of its samples.

        Raises:
            SystemExit: see `check_stop`.
        """
        if not runs:
            return []
        first, schemes = runs[0], [run.scheme for run in runs]
        total = first.data.evaluated(split, at_most)
        batches = self._watched(first.batches(split, self.check_stop, at_most), split, total)
        with first.accelerator.autocast():
            return evaluate_together(schemes, batches, first.device, heads, keep_predictions=keep_predictions)

    def _watched(self, batches: Iterable[Batch], split: str, total: int) -> Iterator[Batch]:
        """Yield a process's batches of a split, and show how many of all `total` images were evaluated."""
        name, seen = {"val": "validation", "train": "training"}.get(split, split), 0
        for batch in batches:
            self.console.doing(f"evaluating {name} images: {min(seen, total):,} of {total:,}")
            yield batch
            seen += len(batch) * self.first.accelerator.num_processes

    def check_stop(self, *, folders: bool = False) -> None:
        """Save all runs and exit if any process was asked to; with `folders`, drop runs whose folder was taken over.

        Called before each batch of whatever kind. Costs one collective, without a GPU synchronization.

        Raises:
            SystemExit: a process received a signal or lost its launcher.
        """
        lost = [folders and run.lost_folder for run in self.active]
        if not self.stop.requested_on_any_rank(also=any(lost)):
            return
        reason, code = self.stop.reason or "a signal on another process", self.stop.exit_code
        lost, reason, code = broadcast_from_main((lost, reason, code))
        for run, gone in list(zip(self.active, lost, strict=True)):
            if gone or not any(lost):
                with self.isolate(run):
                    run.interrupt(reason)
        if any(lost):
            return
        if self.first.main:
            self.stop.notify_job(reason)
        where = self.first.folder if self.size == 1 else f"{len(self.active)} runs"
        after = f" after step {self.first.state.step}" if self.size == 1 else ""
        self.console.line(f"stopped by {reason}{after}; the same command resumes: {where}")
        raise SystemExit(code)
