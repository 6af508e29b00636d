"""Independent float64 formulas of the adaptive logit losses and of the logit correlations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tests.losses.oracles import kd, log_softmax, softmax

Array = np.ndarray[Any, np.dtype[np.float64]]


def divergence(log_p: Array, log_q: Array) -> float:
    return math.fsum(math.exp(a) * (a - b) for a, b in zip(log_p, log_q, strict=True))


def ttm(student: Array, teacher: Array, *, temperature: float) -> float:
    rows = [divergence(log_softmax(v / temperature), log_softmax(z)) for z, v in zip(student, teacher, strict=True)]
    return sum(rows) / len(rows)


def wttm(student: Array, teacher: Array, *, temperature: float) -> float:
    """The teacher's probabilities are raised to a power and normalized, as the authors write it."""
    total = 0.0
    for z, v in zip(student, teacher, strict=True):
        powers = np.array([p ** (1 / temperature) for p in softmax(v)])
        target = powers / powers.sum()
        total += powers.sum() * math.fsum(
            t * (math.log(t) - q) for t, q in zip(target, log_softmax(z), strict=True) if t > 0
        )
    return float(total / len(student))


def srd_features(student: Array, teacher: Array, *, exponent: float) -> float:
    gaps = [abs(a - b) ** exponent for a, b in zip(student.ravel(), teacher.ravel(), strict=True)]
    return 2.0 * math.log(math.fsum(gaps))


def correlations(logits: Array, temperature: float) -> tuple[Array, Array]:
    """Products of every two samples' and of every two classes' softened probabilities."""
    p = np.stack([softmax(z / temperature) for z in logits])
    n, c = p.shape
    samples = np.array([[math.fsum(p[i] * p[j]) for j in range(n)] for i in range(n)])
    classes = np.array([[math.fsum(p[:, i] * p[:, j]) for j in range(c)] for i in range(c)])
    return samples, classes


def batch_correlation(student: Array, teacher: Array, *, temperature: float, keep: Array | None = None) -> float:
    squares = (correlations(student, temperature)[0] - correlations(teacher, temperature)[0]) ** 2
    return float((squares if keep is None else squares[keep]).sum() / len(student))


def class_correlation(student: Array, teacher: Array, *, temperature: float, keep: Array | None = None) -> float:
    squares = (correlations(student, temperature)[1] - correlations(teacher, temperature)[1]) ** 2
    return float((squares if keep is None else squares[keep]).sum() / student.shape[1])


def mlkd(
    student: Array, teacher: Array, *, temperatures: list[float], levels: tuple[float, float, float], masks: str
) -> float:
    p = np.stack([softmax(v) for v in teacher])
    unsure = p.max(axis=1) <= np.percentile(p.max(axis=1), 50)
    rare = p.sum(axis=0) <= np.percentile(p.sum(axis=0), 50)
    n, total = len(student), 0.0
    for t in temperatures:
        rows = [kd(student[i : i + 1], teacher[i : i + 1], temperature=t) for i in range(n)]
        if masks == "select":
            instance = sum(row for row, kept in zip(rows, unsure, strict=True) if kept) / n
            batch = batch_correlation(student, teacher, temperature=t, keep=unsure)
            classes = class_correlation(student, teacher, temperature=t, keep=rare)
        else:
            shares = (unsure.mean(), rare.mean()) if masks == "share" else (1.0, 1.0)
            instance = shares[0] * sum(rows) / n
            batch = shares[0] * batch_correlation(student, teacher, temperature=t)
            classes = shares[1] * class_correlation(student, teacher, temperature=t)
        total += levels[0] * instance + levels[1] * batch + levels[2] * classes
    return float(total)


def uskd_target(student: Array, labels: list[int]) -> float:
    p = [softmax(z)[y] for z, y in zip(student, labels, strict=True)]
    mean = sum(q * q for q in p) / len(p)
    return -math.fsum((q * q + 1 - mean) * math.log(q) for q in p) / len(p)


def uskd_weak(weak: Array, labels: list[int], *, smoothing: float) -> float:
    c = weak.shape[1]
    total = 0.0
    for z, y in zip(weak, labels, strict=True):
        target = [(1 - smoothing) * (i == y) + smoothing / c for i in range(c)]
        total -= math.fsum(t * q for t, q in zip(target, log_softmax(z), strict=True))
    return total / len(weak)


def uskd_non_target(student: Array, weak: Array, labels: list[int], *, rank: str) -> float:
    total = 0.0
    for z, w, y in zip(student, weak, labels, strict=True):
        ours = log_softmax(z) if rank == "reference" else softmax(z)
        theirs = softmax(w)
        score = theirs / (1 - theirs[y] + 1e-6) + ours / (1 - ours[y] + 1e-6)
        zipf = {c: float(np.float32(1) / np.float32(r)) for r, c in enumerate(np.argsort(-score, kind="stable"), 1)}
        others = [c for c in range(len(z)) if c != y]
        mass = math.fsum(zipf[c] for c in others)
        log_q = log_softmax(z[others])
        total -= math.fsum(zipf[c] / mass * q for c, q in zip(others, log_q, strict=True))
    return total / len(student)
