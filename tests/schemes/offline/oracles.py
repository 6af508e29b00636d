"""The offline methods of several or moving teachers again, in float64 numpy by explicit loops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.losses.oracles import Array, cross_entropy, hint, kd, log_softmax, one_hot, softmax


def teacher_weights(teachers: Sequence[Array], labels: Sequence[int]) -> Array:
    """(1 - softmax over teachers of their cross-entropy on the sample) / (K - 1), as [K, N]."""
    columns = []
    for sample, label in enumerate(labels):
        surprise = np.array([-log_softmax(teacher[sample])[label] for teacher in teachers])
        columns.append((1.0 - softmax(surprise)) / (len(teachers) - 1))
    return np.stack(columns, axis=1)


def camkd(
    student: Array,
    teachers: Sequence[Array],
    read: Sequence[tuple[Array, Array]],
    features: Sequence[Array],
    labels: Sequence[int],
    *,
    temperature: float,
    weights: tuple[float, float, float],
) -> float:
    """Hard, soft and feature term; `read` are logits and map of the student's feature in each teacher's space."""
    hard, alpha, beta = weights
    count, samples = len(teachers), len(labels)
    by_logits = teacher_weights(teachers, labels)
    by_reading = teacher_weights([logits for logits, _ in read], labels)
    soft = maps = 0.0
    for k in range(count):
        for n in range(samples):
            row = slice(n, n + 1)
            soft += by_logits[k, n] * kd(student[row], teachers[k][row], temperature=temperature)
            maps += by_reading[k, n] * hint(read[k][1][n], features[k][n])
    total = hard * cross_entropy(student, one_hot(labels, student.shape[1]))
    return float(total + (alpha * soft + beta * maps) / (count * samples))


def most_confident(members: Sequence[Array], labels: Sequence[int], by: str) -> Array:
    """For each sample the logits of the first member with the largest probability of the label, or of any class."""
    rows = []
    for n, label in enumerate(labels):
        sure = [softmax(z[n])[label] if by == "supervised" else softmax(z[n]).max() for z in members]
        rows.append(members[sure.index(max(sure))][n])
    return np.stack(rows)


def hard_and_soft(
    student: Array, target: Array, labels: Sequence[int], *, hard: float, alpha: float, temperature: float
) -> float:
    soft = kd(student, target, temperature=temperature)
    return hard * cross_entropy(student, one_hot(labels, student.shape[1])) + alpha * soft
