"""One short run of every loss on digits, in one table: `python -m experiments.every_loss runs/every_loss`.

Accuracy over seeds, and time and memory of a training step relative to KD's. Finished runs are found again.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as kdschemes sets it, here before torch is loaded

import torch
from accelerate.state import AcceleratorState
from torch.profiler import ProfilerActivity, profile

from experiments.bench import built, timed, train_one_epoch
from kdschemes.config import Config
from kdschemes.config.load import load_config
from kdschemes.config.losses import KINDS
from kdschemes.data import open_data
from kdschemes.distributed.launch import start_processes
from kdschemes.errors import TrainingStopped
from kdschemes.schemes import build_scheme
from kdschemes.training.run import Run
from kdschemes.training.train import train

RECIPES = Path(__file__).resolve().parent
TEACHER, STUDENT = "resnet8x4", "resnet20"
PLAIN = ("none", "none")
LOSSES = [(kind, name) for kind, table in KINDS.items() for name in table if name != "none"]


def overrides(kind: str, name: str, output: Path | str, seed: int = 0) -> list[str]:
    """Return the command of one run: the loss by its defaults, with cross-entropy as it was published."""
    off = [f"losses.{other}=none" for other in KINDS if other != kind]
    return [
        "experiment=digits/study",
        "scheme=offline",
        f"teacher={TEACHER}",
        f"model={STUDENT}",
        *off,
        *([] if name == "none" else [f"losses.{kind}={name}"]),
        f"seed={seed}",
        f"output_dir={output}",
        "optim.lr=0.05",
        "optim.clip_grad_norm=5",
        "train.epochs=10",
        "train.eval_every_epochs=10",
        "train.num_threads=1",
    ]


def config_of(kind: str, name: str, output: Path | str, seed: int = 0) -> Config:
    """Return that run's configuration."""
    return load_config(overrides(kind, name, output, seed), recipes=RECIPES)


def train_one(kind: str, name: str, output: str, seed: int) -> dict[str, Any] | None:
    """Train one run, or find it, and return its results; None where it diverged."""
    AcceleratorState._reset_state(reset_partial_state=True)
    with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
        try:
            return train(config_of(kind, name, output, seed)).results
        except TrainingStopped:
            return None


def accuracies(output: Path, seeds: Sequence[int], processes: int) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Return the results of every loss by seed; the teacher is trained first."""
    train_one("response", "kd", str(output), seeds[0])
    jobs = [(kind, name, str(output), seed) for seed in seeds for kind, name in [PLAIN, *LOSSES]]
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pending = [(job, pool.apply_async(train_one, job)) for job in jobs]
        for number, (job, result) in enumerate(pending, start=1):
            found.setdefault(job[:2], [])
            if (results := result.get()) is not None:
                found[job[:2]].append(results)
            print(f"{number} of {len(jobs)}: {job[1]} seed {job[3]}", file=sys.stderr, flush=True)
    return found


def build(kind: str, name: str, folder: Path) -> Run:
    """Return our training loop for one loss, at its first step."""
    AcceleratorState._reset_state(reset_partial_state=True)
    config = config_of(kind, name, folder)
    accelerator = start_processes(config)
    data = open_data(config.data, seed=0, device=accelerator.device, channels_last=config.train.channels_last)
    scheme = build_scheme(config, data.spec)
    return built(config, accelerator, data, scheme, folder)


def times(rounds: int) -> dict[tuple[str, str], float]:
    """Return the time of an epoch of every loss over that of KD just before it: the median of the rounds."""
    with tempfile.TemporaryDirectory() as folder:
        runs = {loss: build(*loss, Path(folder)) for loss in LOSSES}
        ratios: dict[tuple[str, str], list[float]] = {loss: [] for loss in LOSSES}
        for number in range(rounds + 1):
            for loss, run in runs.items():
                base, taken = (_epoch(each, number) for each in (runs["response", "kd"], run))
                if number:
                    ratios[loss].append(taken / base)
    return {loss: statistics.median(found) for loss, found in ratios.items()}


def _epoch(run: Run, number: int) -> float:
    return timed(partial(train_one_epoch, [run], number))


def memory_of(kind: str, name: str) -> int:
    """Return the bytes of tensors that a run on CPU holds at most in its first steps, weights included."""
    with tempfile.TemporaryDirectory() as folder:
        run = build(kind, name, Path(folder))
        held: int = sum(x.numel() * x.element_size() for x in run.scheme.state_dict().values())
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            train_one_epoch([run], 0)
    assert profiled.profiler is not None
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes: list[int] = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return held + max(itertools.accumulate(changes))


def memories() -> dict[tuple[str, str], float]:
    """Return the peak memory of every loss over that of KD."""
    found = {loss: memory_of(*loss) for loss in LOSSES}
    return {loss: peak / found["response", "kd"] for loss, peak in found.items()}


def table(
    results: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]],
    time: Mapping[tuple[str, str], float],
    memory: Mapping[tuple[str, str], float],
) -> str:
    """Return a Markdown table, a row a loss."""
    lines = [
        "| kind | loss | test top-1 %, last epoch | NLL | time of a step / KD | memory of a step / KD |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for loss, runs in results.items():
        last = [run["heads"][run["primary_head"]]["last"]["test"] for run in runs]
        if not last:
            lines.append(f"| {loss[0]} | {loss[1]} | diverged | | | |")
            continue
        cells = [loss[0], loss[1] if loss != PLAIN else "(cross-entropy alone)"]
        if len(last) < max(map(len, results.values())):
            cells[1] += f" ({len(last)} seeds; the others diverged)"
        cells += [mean_std([r["top1"] for r in last], 2), mean_std([r["nll"] for r in last], 3)]
        cells += [f"{ratios[loss]:.2f}" if loss in ratios else "" for ratios in (time, memory)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def mean_std(values: Sequence[float], digits: int) -> str:
    """Return mean and deviation of values over seeds."""
    std = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{std}"


def main() -> None:
    """Read the command line, train what is not done, measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m experiments.every_loss", description=__doc__)
    parser.add_argument("output", type=Path, help="folder for the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--rounds", type=int, default=5, help="measured epochs of each loss, interleaved")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = accuracies(options.output, options.seeds, options.processes)
    teacher = next(iter(results["response", "kd"]))["heads"]["teacher"]["last"]["test"]["top1"]
    time, memory = times(options.rounds), memories()
    (options.output / "costs.json").write_text(json.dumps({"/".join(k): [time[k], memory[k]] for k in time}))
    print(f"digits, {TEACHER} ({teacher:.2f} %) teaches {STUDENT}; seeds {', '.join(map(str, options.seeds))}\n")
    print(table(results, time, memory))


if __name__ == "__main__":
    main()
