"""Inputs of the reference values: seeded, so that `losses.json` describes arrays and holds none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

Array = NDArray[np.float32] | NDArray[np.int64]
Rows = NDArray[np.float64]


def _unit(rows: Rows) -> Rows:
    norms: Rows = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / norms


THEN: dict[str, Callable[[Rows], Rows]] = {
    "relu": lambda x: np.maximum(x, 0.0),
    "unit": _unit,
    "softmax": lambda x: softmax(x, axis=1),
}
"""What is done to normal numbers, still in float64."""


def make_input(description: Mapping[str, Any], made: Mapping[str, Array]) -> Array:
    """Return one array; `made` are those made before it, which it may name."""
    match description:
        case {"normal": shape, "scale": scale, "seed": seed, **more}:
            values: Rows = np.random.default_rng(seed).standard_normal(shape) * scale
            if "then" in more:
                values = THEN[more["then"]](values)
            return values.astype(np.float32)
        case {"integers": shape, "below": below, "seed": seed, **more}:
            integers: NDArray[np.int64] = np.random.default_rng(seed).integers(0, below, shape, dtype=np.int64)
            if "first_column" in more:
                integers[:, 0] = made[more["first_column"]]
            return integers
        case {"range": length}:
            return np.arange(length, dtype=np.int64)
    raise ValueError(f"no such input: {description}")


def make_inputs(descriptions: Mapping[str, Mapping[str, Any]]) -> dict[str, Array]:
    """Return the arrays of one case by name, made in the order in which they are described."""
    made: dict[str, Array] = {}
    for name, description in descriptions.items():
        made[name] = make_input(description, made)
    return made
