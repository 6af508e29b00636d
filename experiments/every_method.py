"""One short run of every method on digits, in one table: `python -m experiments.every_method runs/every_method`.

Accuracy over seeds, and the time of a training step relative to that of plain cross-entropy. Finished runs are found
again.
"""

from __future__ import annotations

import argparse
import contextlib
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

from experiments.bench import built, timed, train_one_epoch
from experiments.every_loss import mean_std
from kdschemes.config import Config
from kdschemes.config.load import allow_typed, load_config
from kdschemes.config.schemes import SCHEMES
from kdschemes.data import open_data
from kdschemes.distributed.launch import start_processes
from kdschemes.errors import TrainingStopped
from kdschemes.schemes import build_scheme
from kdschemes.storage.naming import run_name
from kdschemes.training.run import Run
from kdschemes.training.train import train

RECIPES = Path(__file__).resolve().parent
TEACHER, STUDENT = "resnet8x4", "resnet20"
PLAIN, TRAINED_BEFORE = "supervised/ce", "offline/dpkd"
"""The baseline, and the method whose student has been trained: on the same labels, by the baseline's run."""
PUBLISHED_RAMP, PUBLISHED_EPOCHS = 80, 300
EXTRA: dict[str, list[str]] = {
    "supervised/ce mixup 0.2": ["scheme=supervised", "method=ce", "data.mixup=0.2"],
    "supervised/ce cutmix 1.0": ["scheme=supervised", "method=ce", "data.cutmix=1"],
    "online/dml sequential": ["scheme=online", "method=dml", "scheme.update=sequential"],
    "online/dml shared trunk": ["scheme=online", "method=dml", "scheme.topology=shared_trunk", "scheme.peers=3"],
}
SPECIAL: dict[str, list[str]] = {
    "offline/camkd": [f"teacher.name=[{TEACHER},resnet32]"],
    "offline/takd": ["scheme.assistants=[resnet32]"],
    "online/switokd": [f"scheme.large_model={TEACHER}"],
}
TOPOLOGIES = {f"topology/{path.stem}": path.stem for path in sorted((RECIPES / "topologies").glob("*.py"))}


def methods() -> dict[str, list[str]]:
    """Return what is run, by title: every method of the tables, some of their options, and the shipped topologies."""
    found = {
        f"{scheme}/{method}": [f"scheme={scheme}", f"method={method}"]
        for scheme, table in SCHEMES.items()
        for method in table
    }
    found = {title: [*overrides, *SPECIAL.get(title, [])] for title, overrides in found.items()} | EXTRA
    return found | {title: [f"experiment=topologies/{name}"] for title, name in TOPOLOGIES.items()}


def config_of(title: str, options: argparse.Namespace, seed: int) -> Config:
    """Return the configuration of one run; a ramp keeps its published share of the training."""
    overrides = [
        "experiment=digits/study",
        *methods()[title],
        f"model={options.model}",
        f"seed={seed}",
        f"output_dir={options.output}",
        f"train.epochs={options.epochs}",
        f"train.eval_every_epochs={options.epochs}",
        "optim.lr=0.05",
        "optim.clip_grad_norm=5",
        "train.num_threads=1",
        *options.override,
    ]
    if title == TRAINED_BEFORE:
        overrides.append(f"model.checkpoint={options.output / run_name(config_of(PLAIN, options, seed))}")
    allow_typed(overrides, recipes=RECIPES)
    config = load_config(overrides, recipes=RECIPES)
    if config.scheme.uses_teacher and not any(o.startswith("teacher.name=") for o in overrides):
        overrides.append(f"teacher.name={TEACHER}")
    if getattr(config.losses.response, "schedule", "constant") != "constant":
        overrides.append(f"losses.response.ramp_epochs={options.epochs * PUBLISHED_RAMP / PUBLISHED_EPOCHS}")
    return load_config(overrides, recipes=RECIPES)


def train_one(title: str, options: argparse.Namespace, seed: int) -> dict[str, Any] | None:
    """Train one run, or find it, and return its results; None where it diverged."""
    AcceleratorState._reset_state(reset_partial_state=True)
    with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
        try:
            return train(config_of(title, options, seed)).results
        except TrainingStopped:
            return None


def all_results(options: argparse.Namespace, titles: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Return the results of every method by seed."""
    jobs = [(title, options, seed) for seed in options.seeds for title in titles]
    found: dict[str, list[dict[str, Any]]] = {title: [] for title in titles}
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        pending = [(job, pool.apply_async(train_one, job)) for job in jobs]
        for number, (job, result) in enumerate(pending, start=1):
            if (results := result.get()) is not None:
                found[job[0]].append(results)
            print(f"{number} of {len(jobs)}: {job[0]} seed {job[2]}", file=sys.stderr, flush=True)
    return found


def build(title: str, options: argparse.Namespace, folder: Path) -> Run:
    """Return our training loop for one method, at its first step; teachers have their initial weights."""
    AcceleratorState._reset_state(reset_partial_state=True)
    config = config_of(title, options, 0)
    accelerator = start_processes(config)
    data = open_data(config.data, seed=0, device=accelerator.device, channels_last=config.train.channels_last)
    scheme = build_scheme(config, data.spec)
    return built(config, accelerator, data, scheme, folder)


def times(options: argparse.Namespace, titles: Sequence[str]) -> dict[str, float]:
    """Return the time of an epoch of every method over that of cross-entropy just before it: the median of rounds."""
    with tempfile.TemporaryDirectory() as folder:
        plain = build(PLAIN, options, Path(folder))
        found: dict[str, float] = {}
        for title in titles:
            run = build(title, options, Path(folder))
            ratios = []
            for number in range(options.rounds + 1):
                one, taken = (timed(partial(train_one_epoch, [each], number)) for each in (plain, run))
                ratios.append(taken / one)
            found[title] = statistics.median(ratios[1:])
    return found


def table(results: Mapping[str, Sequence[Mapping[str, Any]]], time: Mapping[str, float]) -> str:
    """Return a Markdown table, a row a method: the reported head, the mean over peers, and the ensemble."""
    lines = [
        "| method | reported | test top-1 %, last epoch | NLL | ECE % | mean over peers | ensemble "
        "| parameters | time of a step / cross-entropy |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for title, runs in results.items():
        if not runs:
            lines.append(f"| {title} | diverged | | | | | | | |")
            continue
        head = runs[0]["primary_head"]
        reported = [run["heads"][head]["last"]["test"] for run in runs]
        peers = [run["mean_over_peers"]["last"]["test"]["top1"] for run in runs if run["mean_over_peers"]]
        ensemble = [run["heads"]["ensemble"]["last"]["test"]["top1"] for run in runs if "ensemble" in run["heads"]]
        cells = [title if len(runs) == max(map(len, results.values())) else f"{title} ({len(runs)} seeds)", head]
        cells += [mean_std([r[key] for r in reported], digits) for key, digits in (("top1", 2), ("nll", 3), ("ece", 2))]
        cells += [mean_std(values, 2) if values else "" for values in (peers, ensemble)]
        cells += [f"{runs[0]['cost'][head]['parameters']:,}", f"{time[title]:.2f}" if title in time else ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Read the command line, train what is not done, measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m experiments.every_method", description=__doc__)
    parser.add_argument("output", type=Path, help="folder for the runs")
    parser.add_argument("override", nargs="*", help="KEY=VALUE for every run")
    parser.add_argument("--methods", nargs="+", choices=list(methods()), metavar="SCHEME/METHOD", help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--model", default=STUDENT)
    parser.add_argument("--processes", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--rounds", type=int, default=5, help="measured epochs of each method, interleaved; 0: none")
    options = parser.parse_args()
    titles = options.methods or list(methods())
    torch.set_num_threads(1)
    results = all_results(options, titles)
    time = times(options, titles) if options.rounds else {}
    (options.output / "times.json").write_text(json.dumps(time))
    print(f"{options.model}, {options.epochs} epochs, seeds {', '.join(map(str, options.seeds))}\n")
    print(table(results, time))


if __name__ == "__main__":
    main()
