"""Formulas of schemes, and those of losses that schemes use."""

from __future__ import annotations

import numpy as np

from tests.losses.feature.test_at import formula as attention_transfer
from tests.losses.formulas import Array, cross_entropy, hint, kd, log_softmax, one_hot, softmax

__all__ = [
    "Array",
    "attention_transfer",
    "byot",
    "cross_entropy",
    "dml",
    "hint",
    "kd",
    "log_softmax",
    "offline_kd",
    "one_hot",
    "softmax",
    "supervised",
]


def supervised(exits: list[Array], labels: list[int], *, smoothing: float, over: str = "all") -> float:
    """Cross-entropy of each output on the labels, equal weights."""
    return sum(cross_entropy(z, one_hot(labels, z.shape[1], smoothing=smoothing, over=over)) for z in exits)


def offline_kd(
    student: Array, teachers: list[Array], weights: list[float], labels: list[int], *, alpha: float, temperature: float
) -> float:
    """(1 - alpha) CE + alpha KD against the weighted mean of the teachers' logits."""
    mean = sum(w * v for w, v in zip(weights, teachers, strict=True)) / sum(weights)
    hard = cross_entropy(student, one_hot(labels, student.shape[1]))
    return (1 - alpha) * hard + alpha * kd(student, np.asarray(mean), temperature=temperature)


def dml(peers: list[Array], labels: list[int], *, temperature: float) -> float:
    """For each of K peers CE and the mean over the others of KD towards it."""
    total = 0.0
    for k, student in enumerate(peers):
        others = [teacher for j, teacher in enumerate(peers) if j != k]
        total += cross_entropy(student, one_hot(labels, student.shape[1]))
        total += sum(kd(student, teacher, temperature=temperature) for teacher in others) / len(others)
    return total


def byot(
    deepest: tuple[Array, Array],
    exits: list[tuple[Array, Array]],
    labels: list[int],
    *,
    alpha: float,
    temperature: float,
    hint_weight: float,
) -> float:
    """CE of the deepest; for each exit (1 - alpha) CE + alpha KD from the deepest + a hint to the last feature map."""
    teacher, last = deepest
    target = one_hot(labels, teacher.shape[1])
    total = cross_entropy(teacher, target)
    for student, feature in exits:
        total += (1 - alpha) * cross_entropy(student, target) + alpha * kd(student, teacher, temperature=temperature)
        total += hint_weight * hint(feature, last)
    return total
