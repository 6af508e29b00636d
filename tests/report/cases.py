"""Runs made by hand, for reports: a folder with what every run leaves, without any training."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kdschemes.config.load import load_config
from kdschemes.config.naming import dump_yaml
from kdschemes.storage.naming import run_name
from kdschemes.storage.predictions import HeadPredictions, Predictions, write_predictions
from kdschemes.study.record import Study, remember, write_study
from kdschemes.study.spec import read_study

EPOCHS = 4


def metrics(top1: float, nll: float = 1.0, **more: float) -> dict[str, Any]:
    return {"top1": top1, "top5": 99.0, "nll": nll, "ece": 2.0} | more


def both(top1: float, best: float | None, nll: float = 1.0, **more: float) -> dict[str, Any]:
    last = {"epoch": EPOCHS, "val": metrics(top1), "test": metrics(top1, nll, **more)}
    return {"last": last, "best": None if best is None else {"epoch": 3, "val": metrics(best), "test": metrics(best)}}


def results(seed: int, top1: float, *, best: float | None = 50.0, nll: float = 1.0, **changes: Any) -> dict[str, Any]:
    """Return what the `results.json` of a run without predictions, latency or compute holds, as old ones are."""
    return {
        "run": "x",
        "data": "digits",
        "seed": seed,
        "epochs": EPOCHS,
        "primary_head": "student",
        "heads": {"student": both(top1, best, nll)},
        "mean_over_peers": None,
        "cost": {"student": {"parameters": 1_234_567, "macs": 3_270_000}},
        "samples": {"train": 1008, "val": 250, "test": 539},
        "train_seconds": 10.0 + seed,
        "processes": 1,
        "device": "cpu",
        "precision": "fp32",
        "versions": {"kdschemes": "0.1.0", "torch": "2.11.0"},
    } | changes


def write_run(
    output: Path,
    words: Sequence[str],
    found: dict[str, Any] | None,
    curve: Sequence[float] = (),
    *,
    epochs: int = EPOCHS,
) -> Path:
    config = load_config([*words, f"train.epochs={epochs}"], recipes=output)
    folder = output / run_name(config)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_yaml(config))
    if found is not None:
        (folder / "results.json").write_text(json.dumps(found))
    losses = {"loss/total": 3.0, "loss/ce/student": 2.0, "loss/kd/teacher->student": 1.0}
    rows: list[dict[str, Any]] = [{"kind": "train", "step": 1, "epoch": 0.5, "lr": 0.1} | (losses if curve else {})]
    rows += [
        {"kind": "eval", "split": "val", "epoch": n, "step": n, "student/top1": value, "student/nll": 3 - value / 50}
        | {"teacher/top1": 99.0}
        for n, value in enumerate(curve, start=1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def supervised(seed: int, *more: str) -> list[str]:
    return ["scheme=supervised", f"seed={seed}", *more]


def rising(top: float, epochs: int = EPOCHS) -> list[float]:
    """Return a curve that ends near `top`."""
    return [round(top * (1 - math.exp(-3 * n / epochs)), 3) for n in range(1, epochs + 1)]


def store_predictions(folder: Path, seed: int, accuracy: dict[str, float], images: int = 400) -> None:
    """Write predictions on a test set of 10 classes, by head: right in that share of the images, and as sure."""
    labels = np.arange(images) % 10
    heads = {}
    for number, (head, share) in enumerate(accuracy.items()):
        random = np.random.default_rng([seed, number])
        right = random.random(images) < share
        classes = np.where(right, labels, (labels + random.integers(1, 10, images)) % 10)
        sure = np.clip(random.normal(share, 0.15, images), 0.11, 0.99).astype(np.float32)
        heads[head] = {"test": HeadPredictions(classes, sure)}
    write_predictions(folder, Predictions({"test": labels}, heads))


def write_study_of(output: Path, name: str, text: str, **more: Any) -> Study:
    """Write the folder of a study whose file holds this text; its runs are written by whoever wants them."""
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{name}.yaml").write_text(text)
    file = read_study(output / f"{name}.yaml", [], recipes=output)
    folder = output / "studies" / name
    folder.mkdir(parents=True)
    study = replace(remember(folder, file, file.runs), **more)
    write_study(study)
    return study
