"""Formulas that several losses use, in float64 numpy by explicit loops: slow, plain, independent of the package."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max())
    return np.asarray(e / e.sum())


def log_softmax(x: Array) -> Array:
    shifted = x - x.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def kd(student: Array, teacher: Array, *, temperature: float) -> float:
    """T^2 times the mean of sum_c p_c (log p_c - log q_c), in decimal arithmetic of 50 digits: exact at any T."""
    with localcontext() as context:
        context.prec = 50
        t = Decimal(temperature)
        total = Decimal(0)
        for z, v in zip(student.tolist(), teacher.tolist(), strict=True):
            log_q, log_p = ([Decimal(x) / t for x in row] for row in (z, v))
            q_mass, p_mass = (sum(x.exp() for x in row) for row in (log_q, log_p))
            difference = Decimal(q_mass).ln() - Decimal(p_mass).ln()
            total += sum(a.exp() / p_mass * (a - b + difference) for a, b in zip(log_p, log_q, strict=True))
        return float(t**2 * total / len(student))


def cross_entropy(logits: Array, targets: Array) -> float:
    """Mean of -sum_c y_c log p_c for target distributions y."""
    return float(np.mean([-(y * log_softmax(z)).sum() for z, y in zip(logits, targets, strict=True)]))


def one_hot(labels: list[int], classes: int, *, smoothing: float = 0.0, over: str = "all") -> Array:
    if over == "others":
        off = smoothing / (classes - 1)
        return np.array([[1 - smoothing if c == y else off for c in range(classes)] for y in labels])
    rows = [[(1 - smoothing) * (c == y) + smoothing / classes for c in range(classes)] for y in labels]
    return np.array(rows)


def hint(student: Array, teacher: Array) -> float:
    return math.fsum((a - b) ** 2 for a, b in zip(student.ravel(), teacher.ravel(), strict=True)) / student.size


def pool(features: Array, height: int, width: int) -> Array:
    """Adaptive average pooling: bin i covers rows floor(i H / h) to ceil((i + 1) H / h)."""
    n, c, big_height, big_width = features.shape
    out = np.zeros((n, c, height, width))
    for i in range(height):
        for j in range(width):
            rows = slice(i * big_height // height, -(-(i + 1) * big_height // height))
            columns = slice(j * big_width // width, -(-(j + 1) * big_width // width))
            out[:, :, i, j] = features[:, :, rows, columns].mean(axis=(2, 3))
    return out


def to_smaller(a: Array, b: Array) -> tuple[Array, Array]:
    height, width = min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3])
    return pool(a, height, width), pool(b, height, width)


def divergence(log_p: Array, log_q: Array) -> float:
    return math.fsum(math.exp(a) * (a - b) for a, b in zip(log_p, log_q, strict=True))


def without(row: Array, label: int) -> Array:
    return np.array([x for c, x in enumerate(row) if c != label])


def soft_ce(student: Array, teacher: Array, *, temperature: float) -> float:
    total = 0.0
    for z, v in zip(student / temperature, teacher / temperature, strict=True):
        total -= math.fsum(p * q for p, q in zip(softmax(v), log_softmax(z), strict=True))
    return temperature**2 * total / len(student)


def dot(a: Array, b: Array) -> float:
    return math.fsum(x * y for x, y in zip(a.ravel(), b.ravel(), strict=True))


def length(row: Array, order: int = 2) -> float:
    return math.fsum(abs(x) ** order for x in row.ravel()) ** (1 / order)


def unit(row: Array, order: int = 2) -> Array:
    return row / length(row, order) if length(row, order) else row
