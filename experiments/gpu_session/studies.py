"""Part (d): the deck's two studies with that teacher, each `kdschemes study run` of a file, first with one seed."""

from __future__ import annotations

import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from experiments.bench import timed, train_one_epoch
from experiments.bench_students import students
from experiments.gpu_session.images import small_data
from experiments.gpu_session.record import REPOSITORY, Item, Outcome, Record, Task, run_part
from experiments.gpu_session.teacher import FOLDER, SAFETY, STARTING, join
from kdschemes.config.parse import read_yaml, to_yaml
from kdschemes.storage.atomic import atomic_write
from kdschemes.storage.results import read_results
from kdschemes.study.locate import find_study
from kdschemes.study.status import status

STUDIES = {"alpha": "alpha_effect", "temperature": "temperature_effect"}
"""The shipped studies by a short name: 7 values of alpha, 6 of T."""

SEEDS = (0, 1)

RUNS = 12
"""Runs of both studies with one seed: alpha .9 at T 4 belongs to both."""

PACKED = 7
"""Students that are measured together."""

MOST_EPOCHS, LEAST_EPOCHS = 60, 5

KEPT = ("config.yaml", "results.json", "metrics.jsonl", "timing.jsonl")
"""Files of a run that `kdschemes study report` reads: they are small."""


def items(task: Task) -> Mapping[str, Item]:
    """Return the studies, those with the first seed first."""
    found: dict[str, Item] = {"number of epochs": choose_epochs}
    for seed in SEEDS:
        found |= {f"{name}, seed {seed}": partial(run_study, name=name, seed=seed) for name in STUDIES}
    return dict(list(found.items())[:2]) if task.rehearse else found


def choose_epochs(task: Task) -> Outcome:
    """Choose as many epochs as both studies with one seed can have in the time, by the measured step of a pack."""
    size, steps = (8, 1) if task.rehearse else (128, 20)
    small = ("teacher=resnet20", "model=resnet20") if task.rehearse else ()
    with tempfile.TemporaryDirectory() as folder:
        runs = students("fp32" if task.rehearse else "bf16", size, steps, Path(folder), small, PACKED)
        train_one_epoch(runs, 0)
        step = timed(lambda: train_one_epoch(runs, 1)) / steps / PACKED
    steps_per_epoch = -(-45_000 // 128)
    seconds = task.seconds_left - len(STUDIES) * STARTING
    fitting = int(SAFETY * seconds / (RUNS * step * steps_per_epoch))
    epochs = 1 if task.rehearse else min(max(fitting, LEAST_EPOCHS), MOST_EPOCHS)
    return {"ok": True, "step_ms_of_a_run": 1000 * step, "epochs_that_fit": fitting, "epochs": epochs}


def study_file(task: Task, name: str, seed: int) -> Path:
    """Return the shipped study with this seed alone; a rehearsal has its first and last value and tiny networks."""
    tree = read_yaml(REPOSITORY / "experiments" / "studies" / f"{STUDIES[name]}.yaml") | {"seeds": [seed]}
    if task.rehearse:
        tree["base"] |= {"teacher": "resnet20", "model": "resnet20"}
        tree["grid"] = {key: [values[0], values[-1]] for key, values in tree["grid"].items()}
    file = task.out / f"{name}_seed{seed}.yaml"
    atomic_write(file, to_yaml(tree, width=120).encode())
    return file


def command(task: Task, file: Path) -> list[str]:
    """Return the command that runs a study; on a GPU two processes share it, since a small network leaves it idle."""
    epochs = Record.read(task.out / "studies.json").items["number of epochs"]["epochs"]
    teacher = join(task.out / FOLDER).parent
    keys = [f"teacher.checkpoint={teacher}", f"output_dir={task.out / 'runs'}", f"train.epochs={epochs}"]
    if task.rehearse:
        keys += small_data(task.out)
    else:
        keys += ["experiment=cifar100/study", f"data.root={task.data}", "precision=bf16", "train.log_every_steps=50"]
    parallel = 2 if torch.cuda.is_available() else 1
    return [sys.executable, "-m", "kdschemes", "study", "run", str(file), *keys, "--parallel", str(parallel)]


def run_study(task: Task, name: str, seed: int) -> Outcome:
    """Run a study to its end, or until the clock's signal, which it passes on; return its runs' accuracies."""
    file = study_file(task, name, seed)
    words = command(task, file)
    process = subprocess.Popen(words, cwd=REPOSITORY)

    def stop(number: int, _: FrameType | None) -> None:
        process.send_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, stop)
    code = process.wait()
    signal.signal(signal.SIGTERM, before)
    rows = status(find_study(str(file), str(task.out / "runs"))).rows
    runs = {row.entry.label: results_of(task.out / "runs" / row.entry.folder, row.state) for row in rows}
    archive(task.out)
    found: Outcome = {"command": words[2:], "exit_code": code, "runs": runs}
    unfinished = [row.reason or row.state for row in rows if row.state != "finished"]
    if any(row.state == "failed" for row in rows):
        return found | {"ok": False, "error": f"{len(unfinished)} runs are not finished: {unfinished[0]}"}
    return found if unfinished else found | {"ok": True}


def results_of(run: Path, state: str) -> dict[str, Any]:
    """Return what a run has come to: its state and, once finished, accuracies in percent after the last epoch."""
    results = read_results(run) if state == "finished" else None
    if results is None:
        return {"state": state}
    heads = {head: which["last"] for head, which in results["heads"].items()}
    student, teacher = heads[results["primary_head"]], heads["teacher"]
    return {
        "state": state,
        "test_top1": student["test"]["top1"],
        "val_top1": student["val"]["top1"] if student["val"] else None,
        "teacher_test_top1": teacher["test"]["top1"],
        "train_seconds": results["train_seconds"],
        "images_per_second": results["images_per_second"],
        "pack_size": results["pack_size"],
    }


def archive(out: Path) -> None:
    """Write `runs.tar.gz`: what `kdschemes study report` needs of all runs and studies, without weights."""
    partial_file = out / "runs.tar.gz.partial"
    with tarfile.open(partial_file, "w:gz") as tar:
        files = [file for name in KEPT for file in (out / "runs").glob(f"*/{name}")]
        for file in sorted([*files, *(out / "runs" / "studies").glob("*/study.yaml")]):
            tar.add(file, str(file.relative_to(out)))
    partial_file.replace(out / "runs.tar.gz")


if __name__ == "__main__":
    sys.exit(run_part("studies", items))
