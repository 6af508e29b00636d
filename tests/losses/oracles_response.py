"""Independent float64 formulas of the logit losses."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from typing import Any

import numpy as np

from tests.losses.oracles import kd, log_softmax, softmax

Array = np.ndarray[Any, np.dtype[np.float64]]


def without(row: Array, label: int) -> Array:
    return np.array([x for c, x in enumerate(row) if c != label])


def standardize(logits: Array) -> Array:
    rows = []
    for row in logits:
        mean = math.fsum(row) / len(row)
        deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in row) / (len(row) - 1))
        rows.append([(x - mean) / (deviation + 1e-7) for x in row])
    return np.array(rows)


def soft_ce(student: Array, teacher: Array, *, temperature: float) -> float:
    total = 0.0
    for z, v in zip(student / temperature, teacher / temperature, strict=True):
        total -= math.fsum(p * q for p, q in zip(softmax(v), log_softmax(z), strict=True))
    return temperature**2 * total / len(student)


def target_divergence(student: Array, teacher: Array, labels: list[int], *, temperature: float) -> list[float]:
    """KL of (p_y, 1 - p_y) by sample, in decimal arithmetic of 600 digits: exact for gaps up to 1000."""
    found = []
    with localcontext() as context:
        context.prec = 600
        for z, v, y in zip(student.tolist(), teacher.tolist(), labels, strict=True):
            b = []
            for row in (z, v):
                mass = [(Decimal(x) / Decimal(temperature)).exp() for x in row]
                b.append((mass[y] / sum(mass), (sum(mass) - mass[y]) / sum(mass)))
            context.prec = 60
            found.append(float(sum(p * (p.ln() - q.ln()) for q, p in zip(*b, strict=True))))
            context.prec = 600
    return found


def dkd(
    student: Array, teacher: Array, labels: list[int], *, temperature: float, alpha: float = 1.0, beta: float = 8.0
) -> float:
    target = target_divergence(student, teacher, labels, temperature=temperature)
    total = 0.0
    for z, v, y, t in zip(student, teacher, labels, target, strict=True):
        others = kd(without(z, y)[None], without(v, y)[None], temperature=temperature)
        total += alpha * temperature**2 * t + beta * others
    return total / len(student)


def dkd_gradient(
    student: Array, teacher: Array, labels: list[int], *, temperature: float, alpha: float = 1.0, beta: float = 8.0
) -> Array:
    """T/N (alpha (b^s - b^t) [1, -p^] + beta (p^s - p^t)), p^ over the classes that are not the label."""
    rows = []
    for z, v, y in zip(student / temperature, teacher / temperature, labels, strict=True):
        hat_s, hat_t = softmax(without(z, y)), softmax(without(v, y))
        gap = without(softmax(v), y).sum() - without(softmax(z), y).sum()
        row = np.insert(-alpha * gap * hat_s + beta * (hat_s - hat_t), y, alpha * gap)
        rows.append(temperature * row)
    return np.stack(rows) / len(student)


def nkd(student: Array, teacher: Array, labels: list[int], *, temperature: float, gamma: float) -> float:
    total = 0.0
    for z, v, y in zip(student, teacher, labels, strict=True):
        total -= softmax(v)[y] * log_softmax(z)[y]
        others = softmax(without(v, y) / temperature), log_softmax(without(z, y) / temperature)
        total -= gamma * temperature**2 * math.fsum(p * q for p, q in zip(*others, strict=True))
    return float(total / len(student))


def correlation(a: Array, b: Array, epsilon: str) -> float:
    x, y = a - a.mean(), b - b.mean()
    if not (x.any() and y.any()):
        return 0.0
    lengths = math.sqrt(math.fsum(x * x)), math.sqrt(math.fsum(y * y))
    products = {
        "none": lengths[0] * lengths[1],
        "added": lengths[0] * lengths[1] + 1e-8,
        "clamped": max(lengths[0], 1e-8) * max(lengths[1], 1e-8),
    }
    return math.fsum(x * y) / products[epsilon]


def dist(student: Array, teacher: Array, *, temperature: float, beta: float, gamma: float, epsilon: str) -> float:
    s, t = (np.stack([softmax(row) for row in x / temperature]) for x in (student, teacher))
    inter = sum(1 - correlation(a, b, epsilon) for a, b in zip(s, t, strict=True)) / len(s)
    intra = sum(1 - correlation(a, b, epsilon) for a, b in zip(s.T, t.T, strict=True)) / s.shape[1]
    return float(temperature**2 * (beta * inter + gamma * intra))


def label_loss(row: Array, label: int) -> float:
    """-log p_y as log(1 + sum of the others' odds), which keeps its digits where p_y is nearly 1."""
    odds = [x - row[label] for c, x in enumerate(row) if c != label]
    largest = max(0.0, *odds)
    if largest > 30:
        return float(largest + math.log(math.exp(-largest) + math.fsum(math.exp(x - largest) for x in odds)))
    return math.log1p(math.fsum(math.exp(x) for x in odds))


def wsld(student: Array, teacher: Array, labels: list[int], *, temperature: float) -> float:
    total = 0.0
    for z, v, y in zip(student, teacher, labels, strict=True):
        weight = -math.expm1(-label_loss(z, y) / (label_loss(v, y) + 1e-7))
        total += weight * soft_ce(z[None], v[None], temperature=temperature)
    return total / len(student)


def tfkd_reg(student: Array, labels: list[int], *, temperature: float, label_prob: float, multiplier: float) -> float:
    total, classes = 0.0, student.shape[1]
    for z, y in zip(student, labels, strict=True):
        made = np.array([label_prob if c == y else (1 - label_prob) / (classes - 1) for c in range(classes)])
        target = softmax(made / temperature)
        total += math.fsum(target * (np.log(target) - log_softmax(z)))
    return multiplier * total / student.size
