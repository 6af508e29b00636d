"""The training of runs: find what is done, train what teaches first, build the others, take them to their ends.

The loop is in `lockstep`, a step in `training_run`.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from kdschemes.config import Config
from kdschemes.config.naming import run_name
from kdschemes.config.prerequisites import earlier_runs, taught_by
from kdschemes.core.distillation import Distillation
from kdschemes.core.types import Task
from kdschemes.data import LoadedData, open_data
from kdschemes.distributed.batch_norm import synchronise_batch_norm
from kdschemes.distributed.collectives import first_alone, first_in, first_then_all
from kdschemes.distributed.launch import start_processes
from kdschemes.errors import ToldByFirst, TrainingStopped, UserError
from kdschemes.schemes import build_scheme
from kdschemes.teacher_cache import attach_caches
from kdschemes.tracking.console import Reporter
from kdschemes.tracking.trackers import report_finished
from kdschemes.tracking.wandb_run import apart_from_sweep
from kdschemes.training.checks import check_placement
from kdschemes.training.loop import Lockstep, share_teachers
from kdschemes.training.packing import alone, common
from kdschemes.training.run import Run
from kdschemes.training.run_folder import RunFolder
from kdschemes.training.signals import StopSignal


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
                    outcomes[number] = Finished(run.folder, run.end.results) if why is None else Failed(run.folder, why)
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
        guards.enter_context(first_in(guard or contextlib.nullcontext()))
        done = first_alone(lambda: _finished(self.folder))
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
    done = first_alone(lambda: _finished(folder))
    if done is not None:
        report.once(f"this run is done already: {folder}")
        results = done
        first_alone(lambda: report_finished(config, folder, results))
        return Finished(folder, done, ran=False)

    def open_once() -> LoadedData:
        key = repr((config.data, config.seed, config.train.channels_last))
        if key not in opened:
            opened[key] = open_data(
                config.data, seed=config.seed, device=accelerator.device, channels_last=config.train.channels_last
            )
        return opened[key]

    data = first_then_all(open_once)
    sizes = config.train
    world = accelerator.num_processes
    first_then_all(lambda: data.check_batches(sizes.batch_size, sizes.accumulation, world, sizes.drop_last))
    task = Task(data.num_classes, data.channels, data.image_size, data.train_labels)
    resolved = config
    if earlier := first_then_all(lambda: earlier_runs(config)):
        first_then_all(lambda: _build(taught_by(config, None), task, data, accelerator))
        resolved = taught_by(config, _train_earlier(earlier, accelerator, stop, report))
    scheme = first_then_all(lambda: _build(resolved, task, data, accelerator))
    first_then_all(lambda: attach_caches(resolved, scheme, data))
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


def _finished(folder: Path) -> dict[str, Any] | None:
    try:
        results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError):
        raise UserError(f"{folder / 'results.json'} is damaged: delete it and run again") from None
    return results
