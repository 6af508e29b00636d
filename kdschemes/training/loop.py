"""Runs in lockstep: one after the other takes the same step on the same batch, which is made, and taught, once for all.

A single run is the case of one. Each run keeps its own scheme, optimizer, folder, log and checkpoints, and does with a
batch what it would do alone: its bytes are those of its single training. What runs share are the batch and the frozen
networks that are equal, which answer a batch once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from kdschemes.core.distillation import Distillation
from kdschemes.core.placement import frozen_nodes
from kdschemes.distributed.collectives import from_first
from kdschemes.errors import TrainingStopped, UserError
from kdschemes.evaluation.evaluate import Evaluation, evaluate_together

if TYPE_CHECKING:
    from kdschemes.training.run import Run

T = TypeVar("T")


def share_teachers(scheme: Distillation, others: Sequence[Distillation]) -> None:
    """Let the frozen networks of a scheme that others have too answer with theirs; the copies' memory is let go."""
    kept = [node for other in others for node in frozen_nodes(other)]
    for node in frozen_nodes(scheme):
        twin = next((other for other in kept if node.answers_as(other)), None)
        if twin is not None:
            node.share_answers(twin)


class Lockstep:
    """Trains runs that have `common` facts to their ends. A run that fails leaves the others to go on."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.first = runs[0]
        self.active = list(runs)
        self.count = len(runs)
        for run in runs:
            run.together = self.count
        self.failed: dict[str, UserError | TrainingStopped] = {}

    def train(self) -> None:
        """Take every run to its end.

        Raises:
            SystemExit: a signal asked to stop; every run's checkpoint is written.
        """
        first = self.first
        try:
            for run in list(self.active):
                self._attempt(run, run.open)
            self._check_teachers()
            if self.active:
                total = sum(run.total_steps for run in self.active)
                title = first.folder.name if self.count == 1 else f"{self.count} runs together"
                first.report.start(total, sum(run.state.step for run in self.active), title=title)
            self._finish([run for run in self.active if run.at_end])
            while self.active:
                epoch, done = divmod(min(run.state.step for run in self.active), first.steps_per_epoch)
                self._after_epoch(epoch, self.train_epoch(epoch, done))
        except BaseException as error:
            for run in self.active:
                run.close(error)
            raise
        finally:
            first.report.stop()

    def train_epoch(self, epoch: int, done: int) -> list[Run]:
        """Take the optimizer steps of an epoch from the one after the first `done`; return the runs that took one.

        A run that is further already joins at its step.
        """
        first, config = self.first, self.first.config
        step = epoch * first.steps_per_epoch + done
        if done == 0:
            for run in [run for run in self.active if run.state.step == step]:
                self._attempt(run, run.before_epoch)
        for run in self.active:
            run.scheme.train()
        steps = first.data.train_steps(
            epoch,
            batch_size=config.train.batch_size,
            accumulation=config.train.accumulation,
            rank=first.accelerator.process_index,
            world=first.accelerator.num_processes,
            drop_last=config.train.drop_last,
            start=done,
            companions=first.scheme.companions,
        )
        took: dict[str, Run] = {}
        started = time.perf_counter()
        for run in [run for run in self.active if run.state.step < (epoch + 1) * first.steps_per_epoch]:
            self._attempt(run, partial(run.open_caches, epoch, self._stop_if_asked))
        for micro_batches in steps:
            self._stop_if_asked()
            here = [run for run in self.active if run.state.step == step]
            if not here:
                break
            for run in here:
                self._attempt(run, partial(run.take_step, micro_batches))
            now = time.perf_counter()
            share, started = (now - started) / len(here), now
            for run in here:
                if run in self.active:
                    took[run.folder.name] = run
                    self._attempt(run, partial(run.after_step, share))
            step += 1
            self._advance()
        return [run for run in took.values() if run in self.active]

    def _advance(self) -> None:
        if self.active:
            states = [run.state for run in self.active]
            self.first.report.advance(
                sum(state.step for state in states),
                sum(state.images for state in states),
                sum(state.seconds for state in states),
            )

    def _after_epoch(self, epoch: int, took: Iterable[Run]) -> None:
        """Validate, save and finish the runs that took the last step of an epoch."""
        ended = (epoch + 1) * self.first.steps_per_epoch
        here = [run for run in took if run.state.step == ended]
        judged = [run for run in here if run.validates_after(epoch)]
        for run, found in zip(judged, self._evaluate(judged, "val"), strict=True):
            self._attempt(run, partial(run.validated, epoch + 1, found.metrics))
        if judged and self.count > 1:
            tops = [run.validation_top1 for run in judged if run in self.active]
            if tops:
                self.first.report.line(
                    f"epoch {epoch + 1}  validation of {len(tops)} runs: {min(tops):.2f} to {max(tops):.2f} %"
                )
        for run in here:
            if run in self.active and run.saves_after(epoch):
                self._attempt(run, run.save)
        self._finish([run for run in here if run in self.active and run.at_end])

    def _check_teachers(self) -> None:
        """Report the accuracy of each teacher once."""
        seen: set[int] = set()
        for run in list(self.active):
            if run.scheme.teacher is None or not run.data.sizes["val"]:
                continue
            node = run.scheme.node_of(run.scheme.teacher)
            mark = id(getattr(node, "network", node))
            if mark in seen:
                continue
            seen.add(mark)
            (found,) = self._evaluate([run], "val", [run.scheme.teacher])
            run.report_teacher(found.metrics[run.scheme.teacher]["top1"])

    def _finish(self, runs: Sequence[Run]) -> None:
        """Evaluate last and best epoch of runs that are at their ends, and let them write what they leave."""
        splits = [split for split in ("val", "test") if self.first.data.sizes[split]]
        for which in ("last", "best"):
            there = [run for run in runs if run in self.active]
            for run in there:
                self._attempt(run, partial(run.end.take_weights, which))
            judged = [run for run in there if run in self.active and run.end.needs_evaluation(which)]
            found = {
                split: dict(
                    zip(
                        [run.folder.name for run in judged],
                        self._evaluate(judged, split, keep_answers=which == "last"),
                        strict=True,
                    )
                )
                for split in splits
            }
            for run in there:
                if run in self.active:
                    own = {split: of[run.folder.name] for split, of in found.items() if run.folder.name in of}
                    self._attempt(run, partial(run.end.record, which, own))
        for run in runs:
            if run in self.active:
                self._attempt(run, run.end.finish)
                if run in self.active:
                    self.active.remove(run)

    def _evaluate(
        self, runs: Sequence[Run], split: str, heads: Sequence[str] | None = None, *, keep_answers: bool = False
    ) -> list[Evaluation]:
        if not runs:
            return []
        first = runs[0]
        with first.accelerator.autocast():
            schemes = [run.scheme for run in runs]
            return evaluate_together(schemes, first.batches(split), first.device, heads, keep_answers=keep_answers)

    def _stop_if_asked(self) -> None:
        """Save all runs and exit, if a signal came; end those whose folder another process has taken over."""
        stop = self.first.stop
        lost = [run.guard is not None and run.guard.lost for run in self.active]
        if not stop.agreed(also=any(lost)):
            return
        lost = from_first(lost)
        received = from_first(stop.received)
        for run in [run for run, gone in zip(self.active, lost, strict=True) if gone or not any(lost)]:
            self._attempt(run, partial(run.interrupt, received))
        if any(lost):
            return
        name = received.name if received is not None else "a signal on another process"
        if self.first.main:
            stop.tell_job(name)
        where = self.first.folder if self.count == 1 else f"{len(self.active)} runs"
        after = f" after step {self.first.state.step}" if self.count == 1 else ""
        self.first.report.line(f"stopped by {name}{after}; the same command goes on: {where}")
        raise SystemExit(128 + (received.value if received is not None else 15))

    def _attempt(self, run: Run, work: Callable[[], object]) -> None:
        """Do something for one run; if it fails, it is closed and leaves."""
        try:
            work()
        except (UserError, TrainingStopped) as error:
            self.active.remove(run)
            self.failed[run.folder.name] = error
            run.close(error)
            if self.count > 1:
                self.first.report.line(f"{run.folder.name} ends: {error}")
