"""The training of one run, top to bottom: build, go on from the last checkpoint, step, evaluate, report."""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
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
from kdschemes.errors import ToldByFirst, UserError
from kdschemes.evaluate import evaluate, evaluation_mode
from kdschemes.export import export_exits, export_network, head_costs
from kdschemes.files import write_whole
from kdschemes.launch import start_processes
from kdschemes.nodes import Memory
from kdschemes.optim import build_optimizer, clip_gradients, rate_schedule, set_rate
from kdschemes.outputs import Batch, Progress
from kdschemes.placement import check_placement, place_frozen, split_keys, split_trained
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
from kdschemes.track import MetricsLog, Trackers

T = TypeVar("T")
NEVER = torch.iinfo(torch.int64).max
INTERRUPTED = "interrupted"


class TrainingStopped(RuntimeError):
    """Training cannot go on (a loss or a weight that is not finite). One line says where."""


@dataclass(frozen=True)
class Finished:
    """A run that is done: its folder and what `results.json` holds. `ran` is False if it was done before."""

    folder: Path
    results: dict[str, Any]
    ran: bool = True


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
    try:
        accelerator = start_processes(config)
    except UserError as error:
        raise error if os.environ.get("RANK", "0") == "0" else ToldByFirst(str(error)) from None
    report = Reporter(show=accelerator.is_main_process)
    with contextlib.nullcontext(stop) if stop is not None else StopSignal() as signals:
        return _train_with_teachers(config, accelerator, signals, report, wait=False)


def _train_with_teachers(
    config: Config, accelerator: Accelerator, stop: StopSignal, report: Reporter, *, wait: bool
) -> Finished:
    folder = Path(config.output) / run_name(config)
    done = first_alone(accelerator, lambda: _finished(folder))
    if done is not None:
        report.line(f"this run is done already: {folder}")
        return Finished(folder, done, ran=False)
    data = first_then_all(
        accelerator,
        lambda: open_data(
            config.data, seed=config.seed, device=accelerator.device, channels_last=config.train.channels_last
        ),
    )
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
    guard = RunFolder(folder, stop, wait=wait) if accelerator.is_main_process else None
    with first_in(accelerator, guard or contextlib.nullcontext()):
        done = first_alone(accelerator, lambda: _finished(folder))
        if done is not None:
            return Finished(folder, done, ran=False)
        run = Run(config, accelerator, stop, report, data, scheme, folder, resolved.teacher.checkpoint, guard)
        return run.train()


def _build(config: Config, task: Task, data: LoadedData, accelerator: Accelerator) -> Distillation:
    scheme = build_scheme(config, task)
    check_placement(config, scheme, data.sizes, accelerator.num_processes)
    if accelerator.num_processes > 1 and config.train.sync_bn:
        synchronise_batch_norm(scheme, accelerator.device)
    return scheme


def _train_earlier(
    earlier: Sequence[Config], accelerator: Accelerator, stop: StopSignal, report: Reporter
) -> list[str]:
    """Return the folders of runs that teach another one, trained now where that was not done before."""
    folders = []
    for run in earlier:
        folder = Path(run.output) / run_name(run)
        report.line(f"teacher {run.model.name} has no checkpoint: its run is {folder}")
        finished = _train_with_teachers(run, accelerator, stop, report, wait=True)
        accelerator.free_memory()
        folders.append(str(finished.folder))
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
        self.log: MetricsLog | None = None
        self.timing: MetricsLog | None = None
        self.trackers: Trackers | None = None

    def train(self) -> Finished:
        """Run to the end from wherever the folder's checkpoint is."""
        config = self.config
        self.opened = time.perf_counter()
        try:
            first_then_all(self.accelerator, self._open_folder)
            self._check_teacher()
            self._report_memories()
            self.report.start(self.total_steps, self.state.step, title=self.folder.name)
            while self.state.step < self.total_steps:
                epoch, done = divmod(self.state.step, self.steps_per_epoch)
                self.train_epoch(epoch, done)
                if self.data.sizes["val"] and ((epoch + 1) % config.train.eval_every == 0 or self._at_end):
                    self._validate(epoch + 1)
                if (epoch + 1) % config.train.checkpoint_every == 0 or self._at_end or self._checkpoint_step:
                    self._save()
            results = self._finish()
        except BaseException as error:
            self._close(error)
            raise
        self._close(None)
        return Finished(self.folder, results)

    @property
    def _at_end(self) -> bool:
        return self.state.step == self.total_steps

    @property
    def _checkpoint_step(self) -> bool:
        every = self.config.train.checkpoint_steps
        return every is not None and self.state.step % every == 0

    def train_epoch(self, epoch: int, done: int) -> None:
        """Take the optimizer steps of an epoch, from the one after the first `done`."""
        config, state = self.config, self.state
        if done == 0:
            with evaluation_mode(self.scheme), self.accelerator.autocast():
                self.scheme.before_epoch(lambda: self._batches("val"))
        self.scheme.train()
        steps = self.data.train_steps(
            epoch,
            batch_size=config.train.batch_size,
            accumulation=config.train.accumulation,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
            drop_last=config.train.drop_last,
            start=done,
            companions=self.scheme.companions,
        )
        started = time.perf_counter()
        for micro_batches in steps:
            if self.stop.agreed(also=self.guard is not None and self.guard.lost):
                self._interrupt()
            progress = Progress(state.step, self.total_steps, self.steps_per_epoch)
            rate = set_rate(self.optimizer, self.rate, progress)
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
            now = time.perf_counter()
            state.seconds += now - started
            started = now
            if self.device.type == "cpu":
                self._check_finite()
            if state.step % config.train.log_every == 0 or self._at_end:
                self._log_window(rate, weights)
            self.report.advance(state.step, state.images, state.seconds)
            if self._checkpoint_step and state.step % self.steps_per_epoch:
                self._save()

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
        self.report.losses(row)
        state.window_sums.zero_()
        state.window_steps = 0

    def _evaluate(self, split: str, heads: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
        with self.accelerator.autocast():
            return evaluate(self.scheme, self._batches(split), self.device, heads)

    def _batches(self, split: str) -> Iterator[Batch]:
        """Yield this process's share of a split, normalised only."""
        size = self.config.train.eval_batch_size
        batches = self.data.eval_batches(
            split, batch_size=size, rank=self.accelerator.process_index, world=self.accelerator.num_processes
        )
        return evenly(batches, self.data.sizes[split], size) if split_keys(self.config) else batches

    def _validate(self, epoch: int) -> None:
        """Evaluate the heads on the validation split; keep the weights of the best epoch of the reported head.

        Best is the highest top-1, among equals the lowest NLL, then the earliest.
        """
        metrics = self._evaluate("val")
        self._write(_eval_row("val", epoch, self.state.step, metrics))
        reported = self.scheme.heads[0]
        top1, nll = metrics[reported]["top1"], metrics[reported]["nll"]
        self.report.epoch(epoch, self.config.train.epochs, {head: metrics[head]["top1"] for head in self.scheme.heads})
        best = self.state.best
        if best is None or (top1, -nll) > (best["top1"], -best["nll"]):
            self.state.best = {"epoch": epoch, "top1": top1, "nll": nll, "file": f"best-epoch{epoch:04d}.pt"}
            self.best_files.add(self.state.best["file"])
            weights = joined(self.scheme.state_dict())
            if self.main:
                save_state(self.folder / self.state.best["file"], weights)

    def _check_teacher(self) -> None:
        """Report the teacher's accuracy; warn if guessing could reach it (chance plus three standard deviations)."""
        if self.scheme.teacher is None or not self.data.sizes["val"]:
            return
        top1 = self._evaluate("val", [self.scheme.teacher])[self.scheme.teacher]["top1"]
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

    def _save(self) -> None:
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
            model = config.model.name
            group = config.group or "-".join((config.scheme.name, config.scheme.method, config.data.name, model))
            self.trackers = Trackers(
                list(config.tracker),
                run_name=self.folder.name,
                folder=self.folder,
                project=config.project,
                group=group,
                job_type=config.scheme.name,
                tags=[config.scheme.name, config.scheme.method, config.data.name, model],
                config=to_tree(config),
                resume_step=self.state.step,
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

    def _interrupt(self) -> None:
        """Save, leave a marker, close the trackers, and exit as a process that a signal ended would.

        A run whose folder another process has taken over saves nothing and ends with an error.
        """
        first_alone(self.accelerator, lambda: self.guard.hold() if self.guard is not None else None)
        received = from_first(self.stop.received)
        self._save()
        name = received.name if received is not None else "a signal on another process"
        if self.main:
            marker = {"signal": name, "step": self.state.step, "total_steps": self.total_steps}
            write_json(self.folder / INTERRUPTED, marker)
            self.stop.tell_job(name)
        self.report.line(f"stopped by {name} after step {self.state.step}; the same command goes on: {self.folder}")
        raise SystemExit(128 + (received.value if received is not None else 15))

    def _finish(self) -> dict[str, Any]:
        """Evaluate the last and the best epoch on validation and test, and write everything that the run leaves."""
        state, config = self.state, self.config
        heads: dict[str, Any] = {head: {} for head in self.scheme.heads}
        if self.scheme.teacher is not None:
            heads[self.scheme.teacher] = {}
        splits = [split for split in ("val", "test") if self.data.sizes[split]]
        found: dict[str, dict[str, dict[str, float]]] = {}
        last_weights = {name: value.clone() for name, value in self.scheme.state_dict().items()}
        for which, epoch in (("last", config.train.epochs), ("best", state.best["epoch"] if state.best else None)):
            if epoch is None:
                for head in heads:
                    heads[head][which] = None
                continue
            if which == "last":
                found = {split: self._evaluate(split) for split in splits}
            elif state.best is not None and epoch < config.train.epochs:
                load_joined(self.scheme, load_state(self.folder / state.best["file"]))
                found = {split: self._evaluate(split) for split in splits}
            for split, metrics in found.items():
                self._write({"which": which} | _eval_row(split, epoch, state.step, metrics) | {"kind": "final"})
            for head in heads:
                heads[head][which] = {"epoch": epoch} | {
                    split: found[split][head] if split in found else None for split in ("val", "test")
                }
            with whole(self.scheme):
                if self.main:
                    place = self.folder if which == "last" else self.folder / "best"
                    metadata = {"run": self.folder.name, "which": which, "epoch": epoch, "data": config.data.name}
                    export_network(self.scheme, place, metadata | {"classes": self.data.classes})
                    export_exits(self.scheme, place)
        self.scheme.load_state_dict(last_weights)
        with whole(self.scheme), self.accelerator.autocast():
            early_exit = evaluate_early_exit(self.scheme, self.data, config.train.eval_batch_size)
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
            "cost": self.costs,
            "samples": self.data.sizes,
            "wall_seconds": self._wall(),
            "train_seconds": state.seconds,
            "images_per_second": state.images / state.seconds,
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
            draw_curves(self.folder / "metrics.jsonl", self.folder / "curves.png", title=self.folder.name)
            if early_exit is not None:
                write_early_exit(early_exit, self.folder)
            if self.trackers is not None:
                self.trackers.summary(_summary(results))
            write_json(self.folder / "results.json", results)
        self.accelerator.wait_for_everyone()
        return results

    def _wall(self) -> float:
        """Return the seconds since the run was opened, those before its last checkpoint included."""
        return self.state.wall + time.perf_counter() - self.opened

    def _write(self, row: dict[str, Any]) -> None:
        if self.log is not None:
            self.log.write(row)
        if self.trackers is not None:
            self.trackers.log(row, step=self.state.step)

    def _close(self, error: BaseException | None) -> None:
        self.report.stop()
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


def _summary(results: dict[str, Any]) -> dict[str, float]:
    heads = results["heads"] | ({"mean over peers": mean} if (mean := results["mean_over_peers"]) else {})
    return {
        f"{which}/{split}/{head}/{name}": value
        for head, both in heads.items()
        for which, splits in both.items()
        if splits
        for split in ("val", "test")
        for name, value in (splits[split] or {}).items()
    }


def peak_memory(device: torch.device) -> int:
    """Return the bytes that this process held at most: tensors on a GPU, all of its memory on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")  # Linux: getrusage would count what the launcher held before it started us
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
