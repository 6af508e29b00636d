"""The training of runs: build, go on from the last checkpoint, step, evaluate, report. The loop is in `lockstep`."""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from kdschemes import __version__
from kdschemes.checkpoint import CHECKPOINT, RunFolder, check_same_config, load_state, save_state
from kdschemes.config import Config
from kdschemes.config.load import NOT_HASHED, dump_yaml, run_name, to_tree
from kdschemes.curves import draw_curves
from kdschemes.data import LoadedData, open_data
from kdschemes.distillation import Distillation, Task
from kdschemes.distributed import any_process, from_first, gather_rows, sum_over_processes, synchronise_batch_norm
from kdschemes.early_exit import evaluate_early_exit, summary
from kdschemes.early_exit_picture import write_early_exit
from kdschemes.errors import ToldByFirst, TrainingStopped, UserError
from kdschemes.evaluate import Evaluation, evaluation_mode
from kdschemes.export import export_exits, export_network, head_costs, head_latencies, training_macs
from kdschemes.files import write_whole
from kdschemes.launch import start_processes
from kdschemes.lockstep import Lockstep, alone, common, share_teachers
from kdschemes.nodes import Memory
from kdschemes.optim import build_optimizer, clip_gradients, rate_schedule, set_rate
from kdschemes.outputs import Batch, Progress
from kdschemes.placement import check_placement, place_frozen, split_keys, split_trained
from kdschemes.predictions import HeadPredictions, Predictions, write_predictions
from kdschemes.progress import Reporter
from kdschemes.results import mean_over_peers, write_json
from kdschemes.schemes import build_scheme, earlier_runs, taught_by
from kdschemes.seeding import seed_step
from kdschemes.sharding import (
    evenly,
    joined,
    load_joined,
    load_joined_optimizer,
    local,
    whole,
)
from kdschemes.stop import StopSignal
from kdschemes.teacher_cache import announce, attach_caches, caches_of
from kdschemes.track import MetricsLog, Trackers
from kdschemes.track_run import open_trackers, report_finished, summary_of
from kdschemes.track_wandb import apart_from_sweep

T = TypeVar("T")
NEVER = torch.iinfo(torch.int64).max
INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Finished:
    """A run that is done: its folder and what `results.json` holds. `ran` is False if it was done before."""

    folder: Path
    results: dict[str, Any]
    ran: bool = True


@dataclass(frozen=True)
class Failed:
    """A run that did not come to its end: its folder and why."""

    folder: Path
    error: UserError | TrainingStopped


@dataclass
class State:
    """Where a run is, beside weights and optimizer: all of it is in the checkpoint. Times are in seconds."""

    step: int = 0
    window_sums: Tensor = field(default_factory=lambda: torch.zeros(0))
    window_steps: int = 0
    first_bad: Tensor = field(default_factory=lambda: torch.zeros(0))
    metrics_offset: int = 0
    best: dict[str, Any] | None = None
    seconds: float = 0.0
    wall: float = 0.0
    images: int = 0


def train(config: Config, stop: StopSignal | None = None) -> Finished:
    """Train the run that a configuration names, or go on with it, or return it if it is done.

    An offline teacher without weights is trained first, as a run of its own that later students find again. Signals are
    remembered by `stop`, if it is given and entered, so that those that came before this call count too.

    Raises:
        UserError: something the user can mend; nothing is lost.
        TrainingStopped: a term or a weight is not finite.
        SystemExit: a signal asked to stop; the checkpoint is written.
    """
    (outcome,) = _start([config], stop, wait=False)
    if isinstance(outcome, Failed):
        raise outcome.error
    return outcome


def train_together(configs: Sequence[Config], stop: StopSignal | None = None) -> list[Finished | Failed]:
    """Train several runs in this process, those that can in lockstep: one batch, and one teacher's answer, for all.

    Each run leaves what it would leave alone, bit for bit on CPU in float32, times and memory apart. Runs go in
    lockstep that agree in `lockstep.common` and in the companions of their batches; the others one after the other. A
    run that fails does not end the others. A folder that another process holds is waited for.

    Raises:
        UserError: the processes cannot be started as the first configuration says.
        SystemExit: a signal asked to stop; every run's checkpoint is written.
    """
    return _start(configs, stop, wait=True)


def _start(configs: Sequence[Config], stop: StopSignal | None, *, wait: bool) -> list[Finished | Failed]:
    try:
        accelerator = start_processes(configs[0])
    except UserError as error:
        raise error if os.environ.get("RANK", "0") == "0" else ToldByFirst(str(error)) from None
    report = Reporter(show=accelerator.is_main_process)
    with contextlib.nullcontext(stop) if stop is not None else StopSignal() as signals:
        return _train(configs, accelerator, signals, report, wait=wait)


def _train(
    configs: Sequence[Config], accelerator: Accelerator, stop: StopSignal, report: Reporter, *, wait: bool
) -> list[Finished | Failed]:
    """Return what became of each run, in their order."""
    outcomes: dict[int, Finished | Failed] = {}
    prepared: dict[str, list[tuple[int, Prepared]]] = {}
    opened: dict[str, LoadedData] = {}
    for number, config in enumerate(configs):
        folder = Path(config.output) / run_name(config)
        try:
            found = _prepare(config, folder, opened, accelerator, stop, report)
        except (UserError, TrainingStopped) as error:
            outcomes[number] = Failed(folder, error)
            continue
        if isinstance(found, Finished):
            outcomes[number] = found
            continue
        beside = f"{number} alone" if alone(config) else f"{common(config)} {found.scheme.companions}"
        group = prepared.setdefault(beside, [])
        share_teachers(found.scheme, [ready.scheme for _, ready in group])
        group.append((number, found))
    for group in prepared.values():
        with contextlib.ExitStack() as guards:
            runs: dict[int, Run] = {}
            for number, ready in group:
                try:
                    entered = ready.enter(guards, accelerator, stop, report, wait=wait)
                except (UserError, TrainingStopped) as error:
                    outcomes[number] = Failed(ready.folder, error)
                    continue
                if isinstance(entered, Finished):
                    outcomes[number] = entered
                    continue
                runs[number] = entered
            if runs:
                lockstep = Lockstep(list(runs.values()))
                lockstep.train()
                for number, run in runs.items():
                    why = lockstep.failed.get(run.folder.name)
                    outcomes[number] = Finished(run.folder, run.results) if why is None else Failed(run.folder, why)
        group.clear()
        accelerator.free_memory()
    return [outcomes[number] for number in range(len(configs))]


@dataclass(frozen=True)
class Prepared:
    """A run that is not finished, with its data open and its teachers trained."""

    config: Config
    folder: Path
    data: LoadedData
    scheme: Distillation
    teacher_checkpoint: str | list[str] | None

    def enter(
        self,
        guards: contextlib.ExitStack,
        accelerator: Accelerator,
        stop: StopSignal,
        report: Reporter,
        *,
        wait: bool,
    ) -> Run | Finished:
        """Take the folder and build the run, unless it has been finished meanwhile.

        Raises:
            UserError: another process holds the folder, or it cannot be written.
            SystemExit: a signal asked to stop while another holder was waited for.
        """
        guard = RunFolder(self.folder, stop, wait=wait) if accelerator.is_main_process else None
        guards.enter_context(first_in(accelerator, guard or contextlib.nullcontext()))
        done = first_alone(accelerator, lambda: _finished(self.folder))
        if done is not None:
            return Finished(self.folder, done, ran=False)
        checkpoint = self.teacher_checkpoint
        return Run(self.config, accelerator, stop, report, self.data, self.scheme, self.folder, checkpoint, guard)


def _prepare(
    config: Config,
    folder: Path,
    opened: dict[str, LoadedData],
    accelerator: Accelerator,
    stop: StopSignal,
    report: Reporter,
) -> Prepared | Finished:
    done = first_alone(accelerator, lambda: _finished(folder))
    if done is not None:
        report.line(f"this run is done already: {folder}")
        results = done
        first_alone(accelerator, lambda: report_finished(config, folder, results))
        return Finished(folder, done, ran=False)

    def open_once() -> LoadedData:
        key = repr((config.data, config.seed, config.train.channels_last))
        if key not in opened:
            opened[key] = open_data(
                config.data, seed=config.seed, device=accelerator.device, channels_last=config.train.channels_last
            )
        return opened[key]

    data = first_then_all(accelerator, open_once)
    sizes = config.train
    world = accelerator.num_processes
    first_then_all(
        accelerator, lambda: data.check_batches(sizes.batch_size, sizes.accumulation, world, sizes.drop_last)
    )
    task = Task(data.num_classes, data.channels, data.image_size, data.train_labels)
    resolved = config
    if earlier := first_then_all(accelerator, lambda: earlier_runs(config)):
        first_then_all(accelerator, lambda: _build(taught_by(config, None), task, data, accelerator))
        resolved = taught_by(config, _train_earlier(earlier, accelerator, stop, report))
    scheme = first_then_all(accelerator, lambda: _build(resolved, task, data, accelerator))
    first_then_all(accelerator, lambda: attach_caches(resolved, scheme, data))
    return Prepared(config, folder, data, scheme, resolved.teacher.checkpoint)


def _build(config: Config, task: Task, data: LoadedData, accelerator: Accelerator) -> Distillation:
    scheme = build_scheme(config, task)
    check_placement(config, scheme, data.sizes, accelerator.num_processes)
    if accelerator.num_processes > 1 and config.train.sync_bn:
        synchronise_batch_norm(scheme, accelerator.device)
    return scheme


def _train_earlier(
    earlier: Sequence[Config], accelerator: Accelerator, stop: StopSignal, report: Reporter
) -> list[str]:
    """Return the folders of runs that teach another one, trained now where that was not done before.

    Raises:
        UserError: one of them cannot be trained.
        TrainingStopped: one of them cannot go on.
    """
    folders = []
    for run in earlier:
        folder = Path(run.output) / run_name(run)
        if not (folder / "results.json").exists():
            report.line(f"teacher {run.model.name} has no checkpoint: its run is {folder}")
        with apart_from_sweep():
            (outcome,) = _train([run], accelerator, stop, report, wait=True)
        if isinstance(outcome, Failed):
            raise outcome.error
        folders.append(str(outcome.folder))
    return folders


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
        columns = len(self.term_names) + 1
        self.state = State(
            window_sums=torch.zeros(columns, dtype=torch.float64, device=self.device),
            first_bad=torch.full((columns,), NEVER, dtype=torch.int64, device=self.device),
        )
        self.opened = time.perf_counter()
        self.best_files: set[str] = set()
        self.together = 1
        self.results: dict[str, Any] = {}
        self._rate = 0.0
        self._weights: dict[str, float] = {}
        self._validation_top1 = 0.0
        self._last_weights: dict[str, Tensor] = {}
        self._heads: dict[str, Any] = {}
        self._found: dict[str, dict[str, dict[str, float]]] = {}
        self._answers: Mapping[str, Evaluation] = {}
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
        first_then_all(self.accelerator, self._open_folder)
        self._report_memories()
        epochs = range(self.state.step // self.steps_per_epoch, self.config.train.epochs)
        caches = caches_of(self.scheme)
        if line := first_alone(self.accelerator, lambda: announce(caches, epochs)):
            self.report.line(line)

    def open_caches(self, epoch: int, before_chunk: Callable[[], None]) -> None:
        """Open what is stored of frozen networks' answers to an epoch's views; fill it first where it is not there."""
        for cache in caches_of(self.scheme):
            cache.open_epoch(epoch, before_chunk, partial(first_alone, self.accelerator))

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
        self._write(row)
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
        self._write(_eval_row("val", epoch, self.state.step, metrics))
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
        windows = gather_rows(self.state.window_sums)
        weights, momenta = joined(self.scheme.state_dict()), joined(self.optimizer.state_dict())
        if self.main:
            assert self.log is not None
            self.log.sync()
            state = self.state
            scaler = self.accelerator.scaler
            save_state(
                self.folder / CHECKPOINT,
                {
                    "version": __version__,
                    "processes": self.accelerator.num_processes,
                    "scheme": weights,
                    "optimizer": momenta,
                    "scaler": scaler.state_dict() if scaler is not None else None,
                    "step": state.step,
                    "window_sums": windows.cpu(),
                    "window_steps": state.window_steps,
                    "metrics_offset": self.log.offset,
                    "best": state.best,
                    "seconds": state.seconds,
                    "wall": self._wall(),
                    "images": state.images,
                },
            )
            best = state.best["file"] if state.best is not None else None
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
            self.state.step = saved["step"]
            windows = saved["window_sums"]
            same = len(windows) == self.accelerator.num_processes
            window = windows[self.accelerator.process_index] if same else windows.mean(0)
            self.state.window_sums = window.to(self.device)
            self.state.window_steps = saved["window_steps"]
            self.state.metrics_offset = saved["metrics_offset"]
            self.state.best = saved["best"]
            self.state.seconds = saved["seconds"]
            self.state.wall = saved["wall"]
            self.state.images = saved["images"]
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
        first_alone(self.accelerator, lambda: self.guard.hold() if self.guard is not None else None)
        self.save()
        name = received.name if received is not None else "a signal on another process"
        if self.main:
            marker = {"signal": name, "step": self.state.step, "total_steps": self.total_steps}
            write_json(self.folder / INTERRUPTED, marker)

    def take_weights(self, which: str) -> None:
        """Take the weights of the last epoch, or those of the best one."""
        if which == "last":
            self._last_weights = {name: value.clone() for name, value in self.scheme.state_dict().items()}
        elif self.needs_evaluation(which):
            assert self.state.best is not None
            load_joined(self.scheme, load_state(self.folder / self.state.best["file"]))

    def needs_evaluation(self, which: str) -> bool:
        """Return whether last or best are not evaluated yet: best may be the last, or there is none."""
        return which == "last" or (self.state.best is not None and self.state.best["epoch"] < self.config.train.epochs)

    def record(self, which: str, found: Mapping[str, Evaluation]) -> None:
        """Write what the last or the best epoch gives on each split, and its networks."""
        state, config = self.state, self.config
        for head in self._judged:
            self._heads.setdefault(head, {})
        epoch = config.train.epochs if which == "last" else state.best["epoch"] if state.best else None
        if epoch is None:
            for head in self._judged:
                self._heads[head][which] = None
            return
        if found:
            self._found = {split: of.metrics for split, of in found.items()}
        if which == "last":
            self._answers = found
        for split, metrics in self._found.items():
            self._write({"which": which} | _eval_row(split, epoch, state.step, metrics) | {"kind": "final"})
        for head in self._judged:
            self._heads[head][which] = {"epoch": epoch} | {
                split: self._found[split][head] if split in self._found else None for split in ("val", "test")
            }
        with whole(self.scheme):
            if self.main:
                place = self.folder if which == "last" else self.folder / "best"
                metadata = {"run": self.folder.name, "which": which, "epoch": epoch, "data": config.data.name}
                export_network(self.scheme, place, metadata | {"classes": self.data.classes})
                export_exits(self.scheme, place)

    @property
    def _judged(self) -> list[str]:
        """The heads, and the teacher."""
        return [*self.scheme.heads, *([self.scheme.teacher] if self.scheme.teacher is not None else [])]

    def finish(self) -> None:
        """Write everything else that the run leaves, and close it."""
        state, config, heads = self.state, self.config, self._heads
        self.scheme.load_state_dict(self._last_weights)
        with whole(self.scheme), self.accelerator.autocast():
            early_exit = evaluate_early_exit(self.scheme, self.data, config.train.eval_batch_size)
            times = head_latencies(self.scheme, self.data) if self.main and not split_keys(config) else {}
        results: dict[str, Any] = {
            "run": self.folder.name,
            "scheme": config.scheme.name,
            "method": config.scheme.method,
            "data": config.data.name,
            "seed": config.seed,
            "epochs": config.train.epochs,
            "reported": self.scheme.heads[0],
            "teacher": self.scheme.teacher,
            "teacher_checkpoint": self.teacher_checkpoint,
            "heads": heads,
            "mean_over_peers": mean_over_peers(heads, self.scheme.peers),
            "cost": {head: cost | {"latency_ms": times.get(head)} for head, cost in self.costs.items()},
            "train_macs_per_image": self.training_macs,
            "samples": self.data.sizes,
            "group": config.group,
            "wall_seconds": self._wall(),
            "train_seconds": state.seconds,
            "images_per_second": state.images / state.seconds,
            "trained_together": self.together,
            "peak_memory_bytes": peak_memory(self.device),
            "processes": self.accelerator.num_processes,
            "device": self.device.type,
            "precision": config.precision,
            "versions": {"kdschemes": __version__, "torch": torch.__version__},
        }
        if early_exit is not None:
            results["early_exit"] = summary(early_exit)
        if self.main:
            assert self.log is not None
            self.log.sync()
            write_predictions(self.folder, _predictions(self._answers))
            draw_curves(self.folder / "metrics.jsonl", self.folder / "curves.png", title=self.folder.name)
            if early_exit is not None:
                write_early_exit(early_exit, self.folder)
            if self.trackers is not None:
                self.trackers.summary(summary_of(results, self.folder))
            write_json(self.folder / "results.json", results)
        self.accelerator.wait_for_everyone()
        self.results = results
        self.close(None)

    def _wall(self) -> float:
        """Return the seconds since the run was opened, those before its last checkpoint included."""
        return self.state.wall + time.perf_counter() - self.opened

    def _write(self, row: dict[str, Any]) -> None:
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


def first_alone(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Run `work` on the first process only and return its value on all; if it fails or exits there, so do all."""
    answer: tuple[T | None, str | None, Any] = (None, None, None)
    if accelerator.is_main_process:
        try:
            answer = (work(), None, None)
        except UserError as error:
            answer = (None, str(error), None)
        except SystemExit as exit:
            answer = (None, None, exit.code)
    value, failure, exit_code = from_first(answer)
    if failure is not None:
        raise UserError(failure) if accelerator.is_main_process else ToldByFirst(failure)
    if exit_code is not None:
        raise SystemExit(exit_code)
    return value  # type: ignore[return-value]


def first_then_all(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Run `work` on the first process, then on the others; if it fails on the first, it fails on all.

    So a download happens once, and an error is told once.
    """
    mine: list[T] = []
    first_alone(accelerator, lambda: mine.append(work()))
    return mine[0] if accelerator.is_main_process else work()


@contextlib.contextmanager
def first_in(accelerator: Accelerator, manager: contextlib.AbstractContextManager[Any]) -> Iterator[None]:
    """Enter a context that only the first process needs; if it cannot enter, all fail."""
    with contextlib.ExitStack() as stack:
        first_alone(accelerator, lambda: stack.enter_context(manager) and None)
        yield


def _finished(folder: Path) -> dict[str, Any] | None:
    try:
        results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError):
        raise UserError(f"{folder / 'results.json'} is damaged: delete it and run again") from None
    return results


def _whole_lines(path: Path) -> int:
    """Return how many bytes of a log are whole lines."""
    return path.read_bytes().rfind(b"\n") + 1 if path.exists() else 0


def _eval_row(split: str, epoch: int, step: int, metrics: dict[str, dict[str, float]]) -> dict[str, Any]:
    row: dict[str, Any] = {"kind": "eval", "split": split, "epoch": epoch, "step": step}
    return row | {f"{head}/{name}": value for head, values in metrics.items() for name, value in values.items()}


def _predictions(found: Mapping[str, Evaluation]) -> Predictions:
    heads: dict[str, dict[str, HeadPredictions]] = {}
    for split, evaluation in found.items():
        for head, (classes, confidence) in evaluation.answers.items():
            heads.setdefault(head, {})[split] = HeadPredictions(classes.numpy(), confidence.numpy())
    return Predictions({split: evaluation.labels.numpy() for split, evaluation in found.items()}, heads)


def peak_memory(device: torch.device) -> int:
    """Return the bytes that this process held at most: tensors on a GPU, all of its memory on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")  # Linux: getrusage would count what the launcher held before it started us
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
