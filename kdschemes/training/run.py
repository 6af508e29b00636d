"""One run: its scheme, optimizer and folder, the steps that it takes and the checkpoints that it goes on from."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.nn.parallel import DistributedDataParallel

from kdschemes import __version__
from kdschemes.config import Config
from kdschemes.config.checks import split_keys
from kdschemes.config.naming import NOT_HASHED, dump_yaml, to_tree
from kdschemes.core.averages import Memory
from kdschemes.core.distillation import Distillation
from kdschemes.core.placement import place_frozen, split_trained
from kdschemes.core.types import Batch, Progress
from kdschemes.data import LoadedData
from kdschemes.data.batches import evenly
from kdschemes.distributed.collectives import any_process, first_alone, first_then_all, sum_over_processes
from kdschemes.distributed.fsdp import joined, load_joined, load_joined_optimizer, local
from kdschemes.errors import TrainingStopped, UserError
from kdschemes.evaluation.cost import head_costs, training_macs
from kdschemes.evaluation.evaluate import evaluation_mode
from kdschemes.seeding import seed_step
from kdschemes.storage.atomic import write_whole
from kdschemes.storage.checkpoint import CHECKPOINT, load_state, save_state
from kdschemes.storage.results import write_json
from kdschemes.teacher_cache import announce, caches_of
from kdschemes.tracking.console import Reporter
from kdschemes.tracking.metrics_log import MetricsLog, eval_row
from kdschemes.tracking.trackers import Trackers, open_trackers
from kdschemes.training.finish import RunEnd
from kdschemes.training.loop import Lockstep
from kdschemes.training.optim import build_optimizer, clip_gradients, rate_schedule, set_rate
from kdschemes.training.run_folder import RunFolder, check_same_config
from kdschemes.training.signals import StopSignal
from kdschemes.training.state import NEVER, State

INTERRUPTED = "interrupted"


class Run:
    """One training in its folder."""

    def __init__(
        self,
        config: Config,
        accelerator: Accelerator,
        stop: StopSignal,
        report: Reporter,
        data: LoadedData,
        scheme: Distillation,
        folder: Path,
        teacher_checkpoint: str | list[str] | None = None,
        guard: RunFolder | None = None,
    ) -> None:
        self.teacher_checkpoint = teacher_checkpoint
        self.guard = guard
        self.config, self.accelerator, self.stop, self.report = config, accelerator, stop, report
        self.data, self.folder = data, folder
        self.main = accelerator.is_main_process
        self.device = accelerator.device
        self.costs = head_costs(scheme, data)
        self.training_macs = training_macs(scheme, data.channels, data.image_size)
        if config.train.channels_last:
            scheme = scheme.to(memory_format=torch.channels_last)
        if config.scheme.uses_teacher:
            place_frozen(scheme, config.teacher, self.device)
        if config.train.compile:
            for node in scheme.nodes.values():
                node.compile()
        if config.train.shard:
            split_trained(scheme, self.device)
        self.scheme = scheme
        self.groups = scheme.parameter_groups()
        # Not sent from the first process to the others before each forward pass: all update them in the same way.
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(  # type: ignore[no-untyped-call]
            scheme, scheme.alike()
        )
        optimizer = build_optimizer(config.optim, self.groups, scheme.rates)
        if config.train.shard:
            self.model = accelerator.prepare_model(scheme, device_placement=False, evaluation_mode=True)
            self.optimizer = accelerator.prepare(optimizer)
        else:
            self.model, self.optimizer = accelerator.prepare(scheme, optimizer)
        self.rate = rate_schedule(config.optim)
        self.term_names = [str(term.name) for term in scheme.terms]
        self.steps_per_epoch = data.steps_per_epoch(
            batch_size=config.train.batch_size, drop_last=config.train.drop_last
        )
        self.total_steps = self.steps_per_epoch * config.train.epochs
        self.state = State.begin(len(self.term_names) + 1, self.device)
        self.opened = time.perf_counter()
        self.best_files: set[str] = set()
        self.together = 1
        self.end = RunEnd(self)
        self._rate = 0.0
        self._weights: dict[str, float] = {}
        self._validation_top1 = 0.0
        self.log: MetricsLog | None = None
        self.timing: MetricsLog | None = None
        self.trackers: Trackers | None = None

    @property
    def at_end(self) -> bool:
        """Whether all steps are taken."""
        return self.state.step == self.total_steps

    @property
    def _checkpoint_step(self) -> bool:
        every = self.config.train.checkpoint_steps
        return every is not None and self.state.step % every == 0

    def train_epoch(self, epoch: int, done: int) -> None:
        """Take the optimizer steps of an epoch of this run alone, from the one after the first `done`."""
        Lockstep([self]).train_epoch(epoch, done)

    def open(self) -> None:
        """Go on from the folder's checkpoint, if there is one, and open the logs."""
        self.opened = time.perf_counter()
        first_then_all(self._open_folder)
        self._report_memories()
        epochs = range(self.state.step // self.steps_per_epoch, self.config.train.epochs)
        caches = caches_of(self.scheme)
        if line := first_alone(lambda: announce(caches, epochs)):
            self.report.line(line)

    def open_caches(self, epoch: int, before_chunk: Callable[[], None]) -> None:
        """Open what is stored of frozen networks' answers to an epoch's views; fill it first where it is not there."""
        for cache in caches_of(self.scheme):
            cache.open_epoch(epoch, before_chunk, first_alone)

    def before_epoch(self) -> None:
        """Let the scheme's nodes look at the validation split."""
        with evaluation_mode(self.scheme), self.accelerator.autocast():
            self.scheme.before_epoch(lambda: self.batches("val"))

    def take_step(self, micro_batches: Sequence[Batch]) -> None:
        """Take one optimizer step."""
        config, state = self.config, self.state
        progress = Progress(state.step, self.total_steps, self.steps_per_epoch)
        self._rate = set_rate(self.optimizer, self.rate, progress)
        seed_step(config.seed, state.step, self.accelerator.process_index)
        values, weights = torch.zeros_like(state.window_sums), dict.fromkeys(self.term_names, 0.0)
        for turn in range(max(1, len(self.scheme.turns))):
            for number, batch in enumerate(micro_batches):
                last = number + 1 == len(micro_batches)
                with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                    result = self.model(batch, progress, turn)
                    self.accelerator.backward(result.total)
                    values += torch.stack([result.total.detach(), *result.losses.values()]).to(values.dtype)
            weights = {name: weight + result.weights[name] for name, weight in weights.items()}
            self._update(turn)
        self.scheme.after_step()
        state.step += 1
        self.stop.steps += 1
        state.images += micro_batches[0].step_size or config.train.batch_size
        state.window_sums += values
        state.window_steps += 1
        bad = torch.full_like(state.first_bad, state.step)
        state.first_bad = torch.where(torch.isfinite(values), state.first_bad, state.first_bad.minimum(bad))
        self._weights = weights

    def after_step(self, seconds: float) -> None:
        """Check, log and save what a step that took `seconds` asks for."""
        config, state = self.config, self.state
        state.seconds += seconds
        if self.device.type == "cpu":
            self._check_finite()
        if state.step % config.train.log_every == 0 or self.at_end:
            self._log_window(self._rate, self._weights)
        if self._checkpoint_step and state.step % self.steps_per_epoch:
            self.save()

    def validates_after(self, epoch: int) -> bool:
        """Return whether the heads are evaluated after an epoch."""
        return bool(self.data.sizes["val"]) and ((epoch + 1) % self.config.train.eval_every == 0 or self.at_end)

    def saves_after(self, epoch: int) -> bool:
        """Return whether there is a checkpoint after an epoch."""
        return (epoch + 1) % self.config.train.checkpoint_every == 0 or self.at_end or self._checkpoint_step

    def _update(self, turn: int) -> None:
        """Take one optimizer step; nodes that stand still keep their weights and their momentum."""
        for name in self.scheme.still(turn):
            for parameter in self.groups.get(name, ()):
                parameter.grad = None
        if self.config.optim.clip is not None:
            self.accelerator.unscale_gradients(self.optimizer)
            clip_gradients(self.groups, self.config.optim.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _log_window(self, rate: float, weights: dict[str, float]) -> None:
        state = self.state
        self._check_finite()
        means = sum_over_processes(state.window_sums.clone()) / (self.accelerator.num_processes * state.window_steps)
        total, *terms = means.tolist()
        row: dict[str, Any] = {
            "kind": "train",
            "step": state.step,
            "epoch": state.step / self.steps_per_epoch,
            "lr": rate,
            "loss/total": total,
        }
        row |= {f"loss/{name}": value for name, value in zip(self.term_names, terms, strict=True)}
        row |= {f"weight/{name}": weight for name, weight in weights.items()}
        self.write(row)
        if self.timing is not None:
            timing = {"step": state.step, "seconds": state.seconds, "images_per_second": state.images / state.seconds}
            self.timing.write(timing)
        if self.together == 1:
            self.report.losses(row)
        state.window_sums.zero_()
        state.window_steps = 0

    def batches(self, split: str) -> Iterator[Batch]:
        """Yield this process's share of a split, normalised only."""
        size = self.config.train.eval_batch_size
        batches = self.data.eval_batches(
            split, batch_size=size, rank=self.accelerator.process_index, world=self.accelerator.num_processes
        )
        return evenly(batches, self.data.sizes[split], size) if split_keys(self.config) else batches

    @property
    def validation_top1(self) -> float:
        """The reported head's last validation accuracy in percent."""
        return self._validation_top1

    def validated(self, epoch: int, metrics: dict[str, dict[str, float]]) -> None:
        """Take the heads' metrics on the validation split; keep the weights of the best epoch of the reported head.

        Best is the highest top-1, among equals the lowest NLL, then the earliest.
        """
        self.write(eval_row("val", epoch, self.state.step, metrics))
        reported = self.scheme.heads[0]
        top1, nll = metrics[reported]["top1"], metrics[reported]["nll"]
        self._validation_top1 = top1
        if self.together == 1:
            tops = {head: metrics[head]["top1"] for head in self.scheme.heads}
            self.report.epoch(epoch, self.config.train.epochs, tops)
        best = self.state.best
        if best is None or (top1, -nll) > (best["top1"], -best["nll"]):
            self.state.best = {"epoch": epoch, "top1": top1, "nll": nll, "file": f"best-epoch{epoch:04d}.pt"}
            self.best_files.add(self.state.best["file"])
            weights = joined(self.scheme.state_dict())
            if self.main:
                save_state(self.folder / self.state.best["file"], weights)

    def report_teacher(self, top1: float) -> None:
        """Report the teacher's accuracy; warn if guessing could reach it (chance plus three standard deviations)."""
        chance = 1.0 / self.data.num_classes
        guessing = 100.0 * (chance + 3.0 * math.sqrt(chance * (1.0 - chance) / self.data.sizes["val"]))
        self.report.line(f"teacher on the validation split: {top1:.2f} % (it may have been trained on these images)")
        if top1 <= guessing:
            self.report.line(
                f"warning: the teacher is at chance level ({top1:.2f} % on the validation split, chance is "
                f"{100 * chance:.2f} %): are these its weights, its classes and its normalisation?"
            )

    def _report_memories(self) -> None:
        for node in self.scheme.nodes.values():
            if isinstance(node, Memory):
                rows, classes = node.logits.shape
                self.report.line(
                    f"memory of {node.reads[0]}'s answers to {rows} training images of {classes} classes: "
                    f"{node.size:,} bytes on the device of each process, and in every checkpoint"
                )

    def _check_finite(self) -> None:
        """Stop if a term was not finite: name the first one, its step and the network that it teaches."""
        first = self.state.first_bad
        if self.accelerator.num_processes > 1:
            torch.distributed.all_reduce(first, op=torch.distributed.ReduceOp.MIN)
        steps = first.tolist()
        if min(steps) == NEVER:
            return
        step = min(steps[1:], default=NEVER)
        if step == NEVER:
            raise TrainingStopped(f"the weighted sum of the terms is not finite at step {steps[0]}: {self._keeps()}")
        term = self.scheme.terms[steps[1:].index(step)]
        raise TrainingStopped(
            f"term {term.name} is not finite at step {step} (it teaches {term.target}): {self._keeps()}"
        )

    def _check_weights(self) -> None:
        for name, parameters in self.groups.items():
            finite = all(bool(local(p).isfinite().all()) for p in parameters)
            if any_process(not finite, self.device):
                raise TrainingStopped(f"a weight of {name} is not finite after step {self.state.step}: {self._keeps()}")

    def _keeps(self) -> str:
        kept = "the last good checkpoint is kept" if (self.folder / CHECKPOINT).exists() else "no checkpoint was made"
        return f"{kept}; try a lower optim.lr, optim.clip=1 or precision=fp32"

    def save(self) -> None:
        """Write a checkpoint, if everything is finite."""
        self._check_finite()
        self._check_weights()
        self.state.wall, self.opened = self.wall(), time.perf_counter()
        if self.log is not None:
            self.log.sync()
            self.state.metrics_offset = self.log.offset
        state = self.state.saved()
        weights, momenta = joined(self.scheme.state_dict()), joined(self.optimizer.state_dict())
        if self.main:
            scaler = self.accelerator.scaler
            save_state(
                self.folder / CHECKPOINT,
                {
                    "version": __version__,
                    "processes": self.accelerator.num_processes,
                    "scheme": weights,
                    "optimizer": momenta,
                    "scaler": scaler.state_dict() if scaler is not None else None,
                    **state,
                },
            )
            best = self.state.best["file"] if self.state.best is not None else None
            for name in self.best_files - {best}:
                (self.folder / name).unlink(missing_ok=True)
            self.best_files &= {best}
        self.accelerator.wait_for_everyone()

    def _open_folder(self) -> None:
        """Go on from the checkpoint if there is one, and open the logs at the place it knows."""
        config, path = self.config, self.folder / CHECKPOINT
        if self.main:
            check_same_config(self.folder, to_tree(config), NOT_HASHED)
            if not (self.folder / "config.yaml").exists():
                write_whole(self.folder / "config.yaml", dump_yaml(config).encode())
        if path.exists():
            self._load(load_state(path))
            self.report.line(f"going on from step {self.state.step} of {self.total_steps}: {self.folder}")
        if self.main:
            self.best_files = {self.state.best["file"]} if self.state.best is not None else set()
            (self.folder / INTERRUPTED).unlink(missing_ok=True)
            for leftover in self.folder.glob("best-epoch*.pt"):
                if leftover.name not in self.best_files:
                    leftover.unlink()
            self.log = MetricsLog(self.folder / "metrics.jsonl", offset=self.state.metrics_offset)
            self.timing = MetricsLog(self.folder / "timing.jsonl", offset=_whole_lines(self.folder / "timing.jsonl"))
            self.trackers = open_trackers(
                config, self.folder, reported=self.scheme.heads[0], resume_step=self.state.step
            )

    def _load(self, saved: dict[str, Any]) -> None:
        try:
            load_joined(self.scheme, saved["scheme"])
            load_joined_optimizer(self.optimizer, saved["optimizer"])
            if self.accelerator.scaler is not None and saved["scaler"] is not None:
                self.accelerator.scaler.load_state_dict(saved["scaler"])
            self.state.restore(saved)
        except (KeyError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0][:120]
            raise UserError(
                f"{self.folder / CHECKPOINT} does not fit this run ({reason}): choose another output or delete it"
            ) from None

    def interrupt(self, received: signal.Signals | None) -> None:
        """Save and leave a marker, for the same command to go on.

        Raises:
            UserError: another process has taken the folder over; nothing is saved.
        """
        first_alone(lambda: self.guard.hold() if self.guard is not None else None)
        self.save()
        name = received.name if received is not None else "a signal on another process"
        if self.main:
            marker = {"signal": name, "step": self.state.step, "total_steps": self.total_steps}
            write_json(self.folder / INTERRUPTED, marker)

    def wall(self) -> float:
        """Return the seconds since the run was opened, those before its last checkpoint included."""
        return self.state.wall + time.perf_counter() - self.opened

    def write(self, row: dict[str, Any]) -> None:
        """Log a row, and mirror it."""
        if self.log is not None:
            self.log.write(row)
        if self.trackers is not None:
            self.trackers.log(row, step=self.state.step)

    def close(self, error: BaseException | None) -> None:
        """Close logs and trackers, which are told whether the run ended well."""
        for log in (self.log, self.timing):
            if log is not None:
                log.close()
        if self.trackers is not None:
            code = (
                error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else int(error is not None)
            )
            self.trackers.finish(exit_code=code, preempted=isinstance(error, SystemExit))


def _whole_lines(path: Path) -> int:
    """Return how many bytes of a log are whole lines."""
    return path.read_bytes().rfind(b"\n") + 1 if path.exists() else 0
