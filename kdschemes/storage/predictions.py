"""`predictions.safetensors`: the predictions of each head of a finished run for every validation and test image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from kdschemes import checksums
from kdschemes.errors import UserError, first_line
from kdschemes.storage.atomic import atomic_write

FILE = "predictions.safetensors"

LABELS, CLASS, CONFIDENCE = "labels", "class", "confidence"

SPLITS = ("val", "test")

Numbers = npt.NDArray[np.generic]


@dataclass(frozen=True)
class HeadPredictions:
    """One head's most probable class for each image, and its probability, in the order of the split."""

    classes: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Predictions:
    """Predictions after the last epoch: `labels` by split, `heads` by head (including the teacher) and split."""

    labels: Mapping[str, npt.NDArray[np.int64]]
    heads: Mapping[str, Mapping[str, HeadPredictions]]


def write_predictions(folder: Path, predictions: Predictions) -> None:
    """Write `predictions.safetensors`: 6 bytes per image and head.

    Raises:
        UserError: it cannot be written.
    """
    tensors: dict[str, Numbers] = {f"{LABELS}/{name}": of.astype(np.int16) for name, of in predictions.labels.items()}
    for head, splits in predictions.heads.items():
        for split, predicted in splits.items():
            tensors[f"{head}/{split}/{CLASS}"] = predicted.classes.astype(np.int16)
            tensors[f"{head}/{split}/{CONFIDENCE}"] = predicted.confidence.astype(np.float32)
    data = save({name: np.ascontiguousarray(value) for name, value in tensors.items()})
    atomic_write(folder / FILE, checksums.safetensors_with_checksum(data))


def read_predictions(folder: Path) -> Predictions | None:
    """Return the predictions in a run's folder; None if there are none (an unfinished run, or an older version).

    Raises:
        UserError: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        tensors = load(path.read_bytes())
        fault = None if checksums.safetensors_is_intact(path) else "it does not match its checksum"
    except (OSError, SafetensorError) as error:
        fault = first_line(error)[:80]
    if fault is not None:
        raise UserError(f"{path} is damaged ({fault}): delete it and results.json, and run again")
    labels: dict[str, npt.NDArray[np.int64]] = {}
    heads: dict[str, dict[str, HeadPredictions]] = {}
    for name, value in tensors.items():
        place, _, what = name.rpartition("/")
        if place == LABELS:
            labels[what] = value.astype(np.int64)
        elif what == CLASS:
            head, _, split = place.rpartition("/")
            confidence = tensors[f"{place}/{CONFIDENCE}"]
            heads.setdefault(head, {})[split] = HeadPredictions(value.astype(np.int64), confidence)
    return Predictions(labels, heads)
