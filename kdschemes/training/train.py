"""Training runs: skip the finished ones, open the data, train prerequisites, build the runs, enter the loop."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.nn import Parameter

from kdschemes.config import Config
from kdschemes.config.baselines import baseline_runs, command
from kdschemes.config.load import build_config
from kdschemes.config.naming import read_config
from kdschemes.config.prerequisites import prerequisite_runs, with_teachers
from kdschemes.core.distillation import Distillation
from kdschemes.data import DataModule, open_data
from kdschemes.distributed.batch_norm import synchronize_batch_norm
from kdschemes.distributed.collectives import main_process_first, on_main_process
from kdschemes.distributed.launch import start_processes
from kdschemes.errors import ErrorOnMain, TrainingStopped, UserError
from kdschemes.schemes import build_scheme
from kdschemes.schemes.networks import adapted_inputs, sgd_for_layer_norms, unknown_inputs
from kdschemes.storage.checkpoint import CHECKPOINT
from kdschemes.storage.naming import run_name
from kdschemes.storage.results import read_results
from kdschemes.teacher_cache import attach_caches
from kdschemes.tracking.console import Reporter
from kdschemes.tracking.trackers import report_finished
from kdschemes.tracking.wandb_run import apart_from_sweep
from kdschemes.training.checks import check_placement
from kdschemes.training.continuation import parent_of, shorter_run
from kdschemes.training.loop import train_runs
from kdschemes.training.optim import build_optimizer
from kdschemes.training.packing import is_packable, pack_key, share_teachers
from kdschemes.training.precision import choose_precision
from kdschemes.training.run import Run
from kdschemes.training.run_folder import check_images_unchanged
from kdschemes.training.signals import StopSignal


@dataclass(frozen=True)
class Finished:
    """A finished run: its folder and the contents of `results.json`. `ran` is False if it was already finished."""

    folder: Path
    results: dict[str, Any]
    ran: bool = True


@dataclass(frozen=True)
class Failed:
    """A run that failed: its folder and the error."""

    folder: Path
    error: UserError | TrainingStopped


def train(config: Config, stop: StopSignal | None = None) -> Finished:
    """Train or resume the run that a configuration describes, or return its results if it is already finished.

    An offline teacher without a checkpoint is trained first, as a separate run that later students reuse. `stop` must
    already be entered, so that signals received before this call count too.

    Raises:
        UserError: a mistake that the user can fix; nothing is lost.
        TrainingStopped: a term or a weight is not finite.
        SystemExit: a stop signal was received; the checkpoint is written.
    """
    (outcome,) = train_together([config], stop, wait=False)
    if isinstance(outcome, Failed):
        raise outcome.error
    return outcome


def train_together(
    configs: Sequence[Config], stop: StopSignal | None = None, *, wait: bool = True
) -> list[Finished | Failed]:
    """Train several runs in this process, packed where possible: sharing batches and teacher forward passes.

    Each run writes the same results as if trained alone, bit for bit on CPU in float32, except for times and memory.
    Runs with the same `pack_key` and auxiliary batches are packed; the rest train one after another. A failed run does
    not stop the others. With `wait`, wait for folders that another process holds.

    Raises:
        UserError: the processes cannot be started as the first configuration specifies.
        SystemExit: a stop signal was received; every run's checkpoint is written.
    """
    try:
        configs, reasons = zip(*map(choose_precision, configs), strict=True)
        accelerator = start_processes(configs[0])
    except UserError as error:
        raise error if os.environ.get("RANK", "0") == "0" else ErrorOnMain(str(error)) from None
    console = Reporter(show=accelerator.is_main_process)
    for reason in filter(None, reasons):
        console.once(reason)
    with contextlib.nullcontext(stop) if stop is not None else StopSignal() as signals:
        return Trainer(accelerator, signals, console, wait=wait).train(configs)


def baselines_of(finished: Finished) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the results of the finished baselines of a run, and the commands that train the others.

    There are none where the run's files no longer tell what it was.
    """
    found: list[dict[str, Any]] = []
    missing: list[str] = []
    with contextlib.suppress(UserError):
        config = build_config(read_config(finished.folder))
        for baseline in baseline_runs(config):
            results = read_results(finished.folder.parent / run_name(baseline))
            if results is None:
                missing.append(command(baseline, config, finished.folder))
            else:
                found.append(results)
    return found, missing


@dataclass
class Trainer:
    """Trains runs in the processes of one launch. With `wait`, wait for folders that another process holds."""

    accelerator: Accelerator
    stop: StopSignal
    console: Reporter
    wait: bool

    def train(self, configs: Sequence[Config]) -> list[Finished | Failed]:
        """Train runs to completion and return their outcomes in the same order."""
        outcomes: dict[Path, Finished | Failed] = {}
        packs: dict[str, list[Run]] = {}
        opened: dict[str, DataModule] = {}
        folders = on_main_process(lambda: [Path(config.output_dir) / run_name(config) for config in configs])
        for config, folder in zip(configs, folders, strict=True):
            try:
                if finished := self._finished(config, folder):
                    outcomes[folder] = finished
                    continue
                run = self._prepare(config, folder, opened)
            except (UserError, TrainingStopped) as error:
                outcomes[folder] = Failed(folder, error)
                continue
            key = f"{pack_key(config)} {run.scheme.aux_batches}" if is_packable(config) else str(folder)
            share_teachers(run.scheme, [other.scheme for other in packs.get(key, ())])
            packs.setdefault(key, []).append(run)
        for pack in packs.values():
            failed = train_runs(pack, self.stop, self.console, wait=self.wait)
            for run in pack:
                why = failed.get(run.folder.name)
                outcomes[run.folder] = Failed(run.folder, why) if why else Finished(run.folder, run.results, run.ran)
            pack.clear()
            self.accelerator.free_memory()
        return [outcomes[folder] for folder in folders]

    def _finished(self, config: Config, folder: Path) -> Finished | None:
        results = on_main_process(lambda: read_results(folder))
        if results is None:
            on_main_process(lambda: check_images_unchanged(folder, config))
            return None
        self.console.once(f"this run is already finished: {folder}")
        on_main_process(lambda: report_finished(config, folder, results))
        return Finished(folder, results, ran=False)

    def _prepare(self, config: Config, folder: Path, opened: dict[str, DataModule]) -> Run:
        """Open the data, train the run's prerequisites, and build its scheme."""
        train, accelerator = config.train, self.accelerator
        parent = None
        if not on_main_process(lambda: (folder / CHECKPOINT).exists()):
            parent = main_process_first(lambda: parent_of(config))
            if parent is not None:
                self.console.line(parent.line)
            elif not self.wait and (shorter := on_main_process(lambda: shorter_run(config, folder))):
                self.console.line(f"a shorter run is finished; resume_from={shorter} would continue from it")

        def open_once() -> DataModule:
            key = repr((config.data, config.seed, train.channels_last))
            if key not in opened:
                opened[key] = open_data(
                    config.data, seed=config.seed, device=accelerator.device, channels_last=train.channels_last
                )
            return opened[key]

        data = main_process_first(open_once)
        if train.patience is not None and not data.sizes["val"]:
            raise UserError("train.patience needs a validation split: set data.val_fraction above 0, or remove it")
        for note in data.notes:
            self.console.once(note)
        world = accelerator.num_processes
        main_process_first(lambda: data.check_batches(train.batch_size, train.grad_accum_steps, world, train.drop_last))
        resolved = config
        if earlier := main_process_first(lambda: prerequisite_runs(config)):
            main_process_first(lambda: self._build(with_teachers(config, None), data))
            resolved = with_teachers(config, self._train_prerequisites(earlier))
        scheme = main_process_first(lambda: self._build(resolved, data))
        for line in [*adapted_inputs(scheme), *unknown_inputs(resolved, data.spec)]:
            self.console.line(line)
        for line in sgd_for_layer_norms(config, scheme):
            self.console.once(line)
        attach_caches(resolved, scheme, data, self._watch)
        checkpoint = resolved.teacher.checkpoint
        return Run(
            *(config, accelerator, data, scheme, folder),
            console=self.console,
            teacher_checkpoint=checkpoint,
            parent=parent,
        )

    def _watch(self, progress: str) -> None:
        """Report the progress of a long preparation, unless a signal asks to stop."""
        if self.stop.reason is not None:
            self.console.line("stopped before it started; the same command starts it again")
            self.stop.notify_job("starting")
            raise SystemExit(self.stop.exit_code)
        self.console.progress(progress)

    def _build(self, config: Config, data: DataModule) -> Distillation:
        world = self.accelerator.num_processes
        scheme = build_scheme(config, data.spec)
        check_placement(config, scheme, data.sizes, world)
        build_optimizer(config.optim, {"": [Parameter(torch.zeros(1))]})  # before a teacher is trained: its arguments
        if world > 1 and config.train.sync_bn:
            synchronize_batch_norm(scheme, self.accelerator.device)
        return scheme

    def _train_prerequisites(self, configs: Sequence[Config]) -> list[str]:
        """Train the given runs, unless they are finished, and return their folders."""
        for config in configs:
            folder = Path(config.output_dir) / run_name(config)
            if not (folder / "results.json").exists():
                self.console.line(f"teacher {config.model.name} has no checkpoint: training it in {folder}")
            with apart_from_sweep():
                (outcome,) = Trainer(self.accelerator, self.stop, self.console, wait=True).train([config])
            if isinstance(outcome, Failed):
                raise outcome.error
        return [str(Path(config.output_dir) / run_name(config)) for config in configs]
