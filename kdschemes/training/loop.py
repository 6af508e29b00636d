"""The training loop, readable from top to bottom: the only place where optimizer steps are taken."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

import torch

from kdschemes.core.types import Batch, Progress
from kdschemes.errors import TrainingStopped, UserError
from kdschemes.seeding import seed_step
from kdschemes.tracking.console import Reporter
from kdschemes.training.finish import finish
from kdschemes.training.optim import clip_gradients, limit_weights, set_momentum, set_rate
from kdschemes.training.pack import Pack
from kdschemes.training.run import Run
from kdschemes.training.signals import StopSignal
from kdschemes.training.teachers import report_teachers


def train_runs(
    runs: Sequence[Run], stop: StopSignal, console: Reporter, *, wait: bool
) -> dict[str, UserError | TrainingStopped]:
    """Train the runs of a pack to completion; return the errors of the runs that failed, by folder name.

    With `wait`, wait for folders that another process holds.

    Raises:
        SystemExit: a stop signal was received; every run's checkpoint is written.
    """
    pack = Pack(runs, stop, console)
    try:
        for run in runs:
            with pack.isolate(run):
                if not run.open(stop, wait=wait):
                    pack.active.remove(run)
        report_teachers(pack)
        if pack.active:
            total, done = sum(run.total_steps for run in pack.active), sum(run.state.step for run in pack.active)
            title = pack.first.folder.name if pack.size == 1 else f"{pack.size} runs together"
            console.start(total, done, title=title, epochs=max(run.config.train.epochs for run in pack.active))
        end_interrupted_epochs(pack)
        finish(pack, [run for run in pack.active if run.at_end])
        while pack.active:
            epoch, start = divmod(min(run.state.step for run in pack.active), pack.first.steps_per_epoch)
            trained = train_epoch(pack, epoch, start)
            end_epoch(pack, trained, epoch)
    except BaseException as error:
        for run in pack.active:
            run.close(error)
        raise
    finally:
        console.stop()
    return pack.failed


def train_epoch(pack: Pack, epoch: int, start: int) -> list[Run]:
    """Train the rest of an epoch, of which the run furthest behind has taken `start` steps; return the trained runs.

    A run that is further ahead joins when the others reach its step.
    """
    first, train = pack.first, pack.first.config.train
    step, end = epoch * first.steps_per_epoch + start, (epoch + 1) * first.steps_per_epoch
    if start == 0:
        for run in pack.at(step):
            with pack.isolate(run):
                run.before_epoch(epoch, pack.check_stop)
    for run in pack.active:
        run.scheme.train()
    steps = first.data.train_steps(
        epoch,
        batch_size=train.batch_size,
        grad_accum_steps=train.grad_accum_steps,
        rank=first.accelerator.process_index,
        world=first.accelerator.num_processes,
        drop_last=train.drop_last,
        start=start,
        aux_batches=first.scheme.aux_batches,
    )
    trained = [run for run in pack.active if run.state.step < end]
    started = time.perf_counter()
    for run in trained:
        with pack.isolate(run):
            run.open_caches(epoch, pack.check_stop)
    for micro_batches in steps:
        pack.check_stop(folders=True)
        here = pack.at(step)
        if not here:
            break
        for run in here:
            with pack.isolate(run):
                train_step(run, micro_batches)
                pack.stop.steps += 1
        now = time.perf_counter()
        seconds, started = (now - started) / len(here), now
        for run in pack.still_active(here):
            with pack.isolate(run):
                run.log_step(seconds)
                if run.at_checkpoint_step and run.state.step < end:
                    run.save()
        step += 1
        pack.show_progress()
    ended = [run for run in pack.still_active(trained) if run.state.step == end]
    for run in ended:
        run.end_epoch()
    return ended


def train_step(run: Run, micro_batches: Sequence[Batch]) -> None:
    """Take one optimizer step per phase of the run's scheme, on the gradients accumulated over all micro-batches."""
    accelerator, scheme, state, optim = run.accelerator, run.scheme, run.state, run.config.optim
    progress = Progress(state.step, run.total_steps, run.steps_per_epoch)
    run.learning_rate = set_rate(run.optimizer, run.lr_schedule, progress)
    if optim.momentum_start is not None:
        set_momentum(run.optimizer, run.momentum_schedule, progress)
    seed_step(run.config.seed, state.step, accelerator.process_index)
    losses, weights = torch.zeros_like(state.window_sums), dict.fromkeys(run.term_names, 0.0)
    for phase in range(max(1, len(scheme.phases))):
        for batch in micro_batches:
            last = batch is micro_batches[-1]
            with contextlib.nullcontext() if last else accelerator.no_sync(run.model):
                result = run.model(batch, progress, phase)
                accelerator.backward(result.total)
            losses += torch.stack([result.total.detach(), *result.losses.values()]).to(losses.dtype)
        weights = {name: weight + result.weights[name] for name, weight in weights.items()}
        for name in scheme.skipped_nodes(phase):  # without a gradient, weights and momenta stay unchanged
            for parameter in run.groups.get(name, ()):
                parameter.grad = None
        if optim.clip_grad_norm is not None:
            accelerator.unscale_gradients(run.optimizer)
            clip_gradients(run.groups, optim.clip_grad_norm)
        run.optimizer.step()
        if optim.max_norm is not None:
            limit_weights(scheme, optim.max_norm)
        run.optimizer.zero_grad(set_to_none=True)
    scheme.after_step()
    run.term_weights = weights
    state.advance(losses, images=micro_batches[0].step_size or run.config.train.batch_size)


def end_interrupted_epochs(pack: Pack) -> None:
    """End the epochs of runs that were stopped during their validation."""
    for step in sorted({run.state.step for run in pack.active if run.state.validation_due}):
        due = [run for run in pack.at(step) if run.state.validation_due]
        end_epoch(pack, due, step // pack.first.steps_per_epoch - 1)


def end_epoch(pack: Pack, trained: Sequence[Run], epoch: int) -> None:
    """Validate and save the runs that completed an epoch, and finish those that are at their end."""
    validated = [run for run in trained if run.validates_after(epoch)]
    for run in validated:
        run.state.validation_due = True
    for run, found in zip(validated, pack.evaluate(validated, "val"), strict=True):
        with pack.isolate(run):
            run.record_validation(epoch + 1, found.metrics)
    tops = [run.validation_score for run in pack.still_active(validated)]
    if tops and pack.size > 1:
        pack.console.line(f"epoch {epoch + 1}  validation of {len(tops)} runs: {min(tops):.2f} to {max(tops):.2f} %")
    for run in pack.still_active(trained):
        if run.saves_after(epoch):
            with pack.isolate(run):
                run.save()
    finish(pack, [run for run in pack.still_active(trained) if run.at_end])
