"""One run: its scheme, optimizer, folder, logs, and checkpoints."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from kdschemes.config import Config
from kdschemes.config.checks import split_keys
from kdschemes.core.averages import PredictionBank
from kdschemes.core.distillation import Distillation
from kdschemes.core.placement import frozen_nodes
from kdschemes.core.types import Batch, Progress
from kdschemes.data import DataModule
from kdschemes.data.batches import checked, evenly
from kdschemes.distributed.collectives import enter_on_main, main_process_first, on_main_process, sum_over_processes
from kdschemes.distributed.fsdp import full_state
from kdschemes.errors import TrainingStopped
from kdschemes.evaluation.cost import head_costs, training_macs
from kdschemes.evaluation.evaluate import evaluation_mode
from kdschemes.models import StagedNetwork, Trunk
from kdschemes.storage.checkpoint import (
    CHECKPOINT,
    Best,
    Checkpoint,
    keep_previous,
    load_checkpoint,
    recover,
    save_checkpoint,
    save_state,
)
from kdschemes.storage.results import main_metric, metric_title, read_results, write_json
from kdschemes.teacher_cache import announce, caches_of
from kdschemes.tracking.console import Reporter
from kdschemes.tracking.metrics_log import continued_row, eval_row, train_row
from kdschemes.tracking.run_log import RunLog
from kdschemes.training.checks import first_not_finite, large_share, remedies
from kdschemes.training.code import code_of
from kdschemes.training.continuation import Parent
from kdschemes.training.optim import momentum_schedule, rate_schedule
from kdschemes.training.prepare import prepare
from kdschemes.training.run_folder import INTERRUPTED, RunFolder, claim_folder, remove_leftovers
from kdschemes.training.signals import StopSignal
from kdschemes.training.state import State


@dataclass(eq=False)
class Run:
    """The state of one training run: the loop takes the steps; this class logs, validates, and saves."""

    config: Config
    accelerator: Accelerator
    data: DataModule
    scheme: Distillation
    folder: Path
    console: Reporter
    teacher_checkpoint: str | list[str] | None = None
    parent: Parent | None = None
    ran: bool = True
    pack_size: int = 1
    learning_rate: float = 0.0
    validation_score: float = 0.0
    term_weights: dict[str, float] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    log: RunLog | None = None
    saved_step: int | None = None
    saved_best: Best | None = None

    def __post_init__(self) -> None:
        train, accelerator = self.config.train, self.accelerator
        self.main, self.device = accelerator.is_main_process, accelerator.device
        self.steps_per_epoch = self.data.steps_per_epoch(batch_size=train.batch_size, drop_last=train.drop_last)
        self.total_steps = self.steps_per_epoch * train.epochs
        self.term_names = [str(term.name) for term in self.scheme.terms]
        self.state = State(len(self.term_names) + 1, self.device)
        self.stopped_early = False
        self.code = code_of(self.config, self.folder) if self.main else {}
        self._lease: RunFolder | None = None
        self._leases = contextlib.ExitStack()

    def build(self) -> None:
        """Count what the networks cost, then prepare them for training."""
        self.costs = head_costs(self.scheme, self.data)
        self.training_macs = training_macs(self.scheme, self.data.channels, self.data.image_size)
        self.model, self.optimizer, self.groups = prepare(self.scheme, self.config, self.accelerator)
        self.lr_schedule = rate_schedule(self.config.optim)
        self.momentum_schedule = momentum_schedule(self.config.optim)

    def open(self, stop: StopSignal, *, wait: bool) -> bool:
        """Acquire the folder, build the run, load its checkpoint if there is one, and open the logs at that point.

        Return False without building the run if another process has finished it in the meantime.

        Raises:
            UserError: another process holds the folder (and `wait` is False), or it contains another run.
            SystemExit: a stop signal was received while waiting for the folder.
        """
        self._lease = RunFolder(self.folder, stop, wait=wait) if self.main else None
        self._leases.enter_context(enter_on_main(self._lease or contextlib.nullcontext()))
        results = on_main_process(lambda: read_results(self.folder))
        if results is not None:
            self.results, self.ran = results, False
            self.close(None)
            return False
        self.build()
        self.opened = time.perf_counter()
        main_process_first(self._resume)
        for part in (self.scheme, *(node.network for node in frozen_nodes(self.scheme))):
            for module in part.modules():
                for note in module.notes if isinstance(module, StagedNetwork | Trunk) else ():
                    self.console.once(note)
        for node in self.scheme.nodes.values():
            if isinstance(node, PredictionBank):
                self.console.line(node.describe())
        epochs = range(self.state.step // self.steps_per_epoch, self.config.train.epochs)
        caches = caches_of(self.scheme)
        if line := on_main_process(lambda: announce(caches, epochs)):
            self.console.line(line)
        return True

    def _resume(self) -> None:
        state, path = self.state, self.folder / CHECKPOINT
        if self.main:
            claim_folder(self.folder, self.config)
            if line := recover(self.folder):
                self.console.line(line)
        if path.exists():
            load_checkpoint(path, self.scheme, self.optimizer, self.accelerator, self._restore)
            self.saved_step, self.saved_best = state.step, state.best
            self.console.line(f"resuming from step {state.step} of {self.total_steps}: {self.folder}")
        elif self.parent is not None:
            self._continue(self.parent)
        on_epoch = self.state.step == self.epochs_trained * self.steps_per_epoch and not self.state.validation_due
        self.stopped_early = on_epoch and self._stops_after(self.epochs_trained)
        if self.main:
            self._remove_leftovers()
            head, offset = self.scheme.heads[0], state.metrics_offset
            done = self.saved_step or 0
            self.log = RunLog(self.config, self.folder, offset=offset, primary_head=head, resume_step=done)
            if self.saved_step is None and self.parent is not None:
                parent = self.parent
                self.log.write(continued_row(state.step, parent.epochs, parent.folder.name, parent.changed))

    def _continue(self, parent: Parent) -> None:
        """Load the last checkpoint of the run to continue from; the best epoch is chosen among the new ones."""
        state, spe = self.state, self.steps_per_epoch
        options = [{key: value for key, value in group.items() if key != "params"} for group in self._option_groups()]
        load_checkpoint(parent.folder / CHECKPOINT, self.scheme, self.optimizer, self.accelerator, self._restore)
        for group, own in zip(self._option_groups(), options, strict=True):
            group.update(own)
        state.metrics_offset, state.metrics_sha256, state.best, state.previous_best = 0, "", None, None
        before = rate_schedule(parent.config.optim)(Progress(state.step - 1, spe * parent.config.train.epochs, spe))
        after = self.lr_schedule(Progress(state.step, self.total_steps, spe))
        self.console.line(f"the learning rate was {before:.3g} at its last step and is {after:.3g} at the next")

    def _option_groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = self.optimizer.param_groups
        return groups

    def _restore(self, saved: Checkpoint) -> None:
        if saved["data"] != self.data.digest:
            raise ValueError("the images or labels have changed since")
        self.state.restore(saved, self.total_steps)

    @property
    def at_end(self) -> bool:
        return self.state.step == self.total_steps or self.stopped_early

    @property
    def epochs_trained(self) -> int:
        """The number of epochs whose steps are all taken."""
        return self.state.step // self.steps_per_epoch

    def _stops_after(self, epoch: int) -> bool:
        """Return whether the run ends after `epoch` epochs, whose evaluation was no better, nor were those before.

        It follows from the best epoch alone, so that a resumed run ends at the same epoch.
        """
        patience, best, every = self.config.train.patience, self.state.best, self.config.train.eval_every_epochs
        if patience is None or best is None or epoch == self.config.train.epochs:
            return False
        return epoch // every - best["epoch"] // every >= patience

    @property
    def lost_folder(self) -> bool:
        return self._lease is not None and self._lease.lost

    @property
    def at_checkpoint_step(self) -> bool:
        every = self.config.train.checkpoint_every_steps
        return every is not None and self.state.step % every == 0

    def validates_after(self, epoch: int) -> bool:
        return bool(self.data.sizes["val"]) and ((epoch + 1) % self.config.train.eval_every_epochs == 0 or self.at_end)

    def saves_after(self, epoch: int) -> bool:
        return (epoch + 1) % self.config.train.checkpoint_every_epochs == 0 or self.at_end or self.at_checkpoint_step

    def batches(self, split: str, check: Callable[[], None], at_most: int | None = None) -> Iterator[Batch]:
        """Yield this process's share of a split (or of `at_most` of its samples), normalized but not augmented.

        `check` is called before each batch.
        """
        size, rank, world = (
            self.config.train.eval_batch_size,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        batches = self.data.eval_batches(split, batch_size=size, rank=rank, world=world, at_most=at_most)
        samples = self.data.evaluated(split, at_most)
        shares = evenly(batches, samples, size) if split_keys(self.config) else batches
        return checked(shares, samples, size, check)

    def before_epoch(self, epoch: int, check: Callable[[], None]) -> None:
        """Run the hooks of the scheme's nodes, which may read the validation split; `check` as for `batches`."""
        with evaluation_mode(self.scheme), self.accelerator.autocast():
            self.scheme.before_epoch(epoch, lambda: self.batches("val", check))

    def open_caches(self, epoch: int, before_chunk: Callable[[], None]) -> None:
        """Open the caches of frozen networks for an epoch; missing predictions are computed and stored first."""
        for cache in caches_of(self.scheme):
            cache.open_epoch(epoch, before_chunk, on_main_process)

    def log_step(self, seconds: float) -> None:
        """Add up the time of a step, and log the window when it is due.

        Raises:
            TrainingStopped: a term is not finite (detected immediately on CPU, at the next log line on GPU).
        """
        state = self.state
        state.seconds += seconds
        due = state.step % self.config.train.log_every_steps == 0 or self.at_end
        if due or self.device.type == "cpu":
            self._check_finite()
        if due:
            self._log_window()

    def _log_window(self) -> None:
        state = self.state
        losses = self._mean_losses(state.window_sums, state.window_steps)
        epoch = state.step / self.steps_per_epoch
        row = train_row(state.step, epoch, self.learning_rate, losses, self.term_weights)
        self.write(row)
        if line := large_share(losses, self.term_weights, self.config.optim.clip_grad_norm):
            self.console.once(line)
        if self.log is not None:
            self.log.write_timing(state.step, state.seconds, state.images)
        if self.pack_size == 1:
            self.console.losses(losses)
        state.start_window()

    def end_epoch(self) -> None:
        """Show the mean losses of the epoch that ended (since the last resume); all processes must call this."""
        if self.pack_size == 1:
            self.console.losses(self._mean_losses(*self.state.end_epoch()))

    def _mean_losses(self, sums: Tensor, steps: int) -> dict[str, float]:
        """Return the mean losses of all processes over so many steps: the total, then each term."""
        means = sum_over_processes(sums.clone()) / (self.accelerator.num_processes * steps)
        return dict(zip(("total", *self.term_names), means.tolist(), strict=True))

    def record_validation(self, epoch: int, metrics: dict[str, dict[str, float]]) -> None:
        """Log the heads' validation metrics; keep the weights of the primary head's best epoch.

        The best epoch has the highest top-1, or with several labels per image the highest mAP, which a checkpoint keeps
        under the same key; ties are broken by lower NLL, then by the earlier epoch.
        """
        self.write(eval_row("val", epoch, self.state.step, metrics))
        primary_head = self.scheme.heads[0]
        main = main_metric(metrics[primary_head])
        top1, nll = metrics[primary_head][main], metrics[primary_head]["nll"]
        self.validation_score = top1
        if self.pack_size == 1:
            tops = {head: metrics[head][main] for head in self.scheme.heads}
            self.console.epoch(epoch, self.config.train.epochs, tops)
        best = self.state.best
        if best is None or (top1, -nll) > (best["top1"], -best["nll"]):
            file, weights = f"best-epoch{epoch:04d}.pt", full_state(self.scheme.state_dict())
            digest = on_main_process(lambda: save_state(self.folder / file, weights))
            self.state.best = {"epoch": epoch, "top1": top1, "nll": nll, "file": file, "sha256": digest}
        self.state.validation_due = False
        self.stopped_early = self._stops_after(epoch)
        if self.stopped_early and (best := self.state.best) is not None:
            who = "training" if self.pack_size == 1 else self.folder.name
            train = self.config.train
            self.console.line(
                f"{who} stops after epoch {epoch} of {train.epochs}: {train.patience} evaluations without a better "
                f"validation {metric_title(main)} than {best['top1']:.2f} % (epoch {best['epoch']})"
            )

    def save(self) -> None:
        """Write a checkpoint.

        Raises:
            TrainingStopped: a term or a weight is not finite; nothing is written.
        """
        self._check_finite(weights=True)
        self.state.wall, self.opened = self.wall(), time.perf_counter()
        if self.log is not None:
            self.state.metrics_offset, self.state.metrics_sha256 = self.log.sync()
        if self.state.step != self.saved_step:
            self.state.previous_best = self.saved_best
            if self.main:
                keep_previous(self.folder)
        state = self.state.saved() | {"data": self.data.digest}
        save_checkpoint(self.folder / CHECKPOINT, self.scheme, self.optimizer, self.accelerator, state)
        self.saved_step, self.saved_best = self.state.step, self.state.best
        if self.main:
            if not (self.folder / "config.yaml").exists():
                claim_folder(self.folder, self.config)
            self._remove_leftovers()
        self.accelerator.wait_for_everyone()

    def _remove_leftovers(self) -> None:
        """Remove the files that belong to neither the last checkpoint nor the one before it."""
        bests = (self.state.best, self.state.previous_best)
        remove_leftovers(self.folder, [best["file"] for best in bests if best is not None])

    def interrupt(self, reason: str) -> None:
        """Save a checkpoint, unless there is one of this step, and leave a marker that `reason` interrupted the run.

        In the final evaluations there is one, and the networks may have other weights: those of the best epoch.

        Raises:
            UserError: another process has taken over the folder; nothing is saved.
        """
        on_main_process(lambda: self._lease.verify() if self._lease is not None else None)
        if self.saved_step != self.state.step:
            self.save()
        if self.main:
            marker = {"signal": reason, "step": self.state.step, "total_steps": self.total_steps}
            write_json(self.folder / INTERRUPTED, marker)

    def _check_finite(self, *, weights: bool = False) -> None:
        groups = self.groups if weights else {}
        if found := first_not_finite(self.scheme, self.state, groups):
            kept = "the last good checkpoint is kept" if (self.folder / CHECKPOINT).exists() else "no checkpoint exists"
            raise TrainingStopped(f"{found}: {kept}; try {remedies(self.config)}")

    def wall(self) -> float:
        """Return the wall time in seconds, including earlier sessions up to the last checkpoint."""
        return self.state.wall + time.perf_counter() - self.opened

    def write(self, row: dict[str, Any]) -> None:
        """Log a row on the main process; if that fails, it fails on all."""
        on_main_process(lambda: self.log.write(row) if self.log is not None else None)

    def close(self, error: BaseException | None) -> None:
        """Close the logs and release the folder; `error` is the error that ended the run early, if any."""
        if self.log is not None:
            self.log.close(error)
        self._leases.close()
