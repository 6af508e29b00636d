"""Independent float64 formulas of the losses between maps."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np

from tests.losses.oracles import hint, pool, to_smaller

Array = np.ndarray[Any, np.dtype[np.float64]]


def attention(sample: Array, *, power: float = 2.0, eps: float = 0.0) -> Array:
    """One map of a sample, summed over channels, flattened, over its length."""
    energy = np.array([math.fsum(abs(sample[:, i, j]) ** power) for i, j in np.ndindex(*sample.shape[1:])])
    length = math.sqrt(math.fsum(energy**2))
    return energy / (length + eps) if length else energy


def attention_transfer(
    student: Array, teacher: Array, *, variant: str = "code", power: float = 2.0, eps: float = 0.0
) -> float:
    total = 0.0
    for s, t in zip(*to_smaller(student, teacher), strict=True):
        gap = attention(s, power=power, eps=eps) - attention(t, power=power, eps=eps)
        squared = math.fsum(gap**2)
        total += math.sqrt(squared) if variant == "paper" else squared / gap.size
    return total / len(student)


def nst(student: Array, teacher: Array) -> float:
    """Three means of the kernel over all pairs of channels."""
    total = 0.0
    for s, t in zip(*to_smaller(student, teacher), strict=True):
        ours, theirs = ([c.ravel() / (np.linalg.norm(c) or 1.0) for c in maps] for maps in (s, t))
        for first, second, sign in ((ours, ours, 1), (theirs, theirs, 1), (ours, theirs, -2)):
            total += sign * math.fsum(float(a @ b) ** 2 for a in first for b in second) / (len(first) * len(second))
    return total / len(student)


def ft(student: Array, teacher: Array, *, variant: str) -> float:
    def unit(sample: Array) -> Array:
        if variant == "attention":
            return attention(sample)
        flat = sample.ravel()
        length = math.sqrt(math.fsum(flat**2))
        return flat / length if length else flat

    pairs = zip(*to_smaller(student, teacher), strict=True)
    return float(np.mean([np.mean(np.abs(unit(s) - unit(t))) for s, t in pairs]))


def ab(student: Array, teacher: Array, *, margin: float) -> float:
    total = 0.0
    student, teacher = to_smaller(student, teacher)
    for s, t in zip(student.ravel(), teacher.ravel(), strict=True):
        if s > -margin and t <= 0:
            total += (s + margin) ** 2
        if s <= margin and t > 0:
            total += (s - margin) ** 2
    return total / len(student)


def ofd(student: Array, teacher: Array, *, margin: Array) -> float:
    total = 0.0
    student, teacher = to_smaller(student, teacher)
    for index in np.ndindex(*student.shape):
        s, t, m = student[index], teacher[index], margin[index[1]]
        if t > 0 or (m < t <= 0 and s > t):
            total += (s - t) ** 2
        elif t <= m and s > m:
            total += (s - m) ** 2
    return float(total / len(student))


def ofd_margin(weight: float, bias: float) -> float:
    deviation = abs(weight)
    if deviation == 0:
        return min(bias, 0.0)
    mass = 0.5 * math.erfc(bias / deviation / math.sqrt(2))
    if mass <= 1e-3:
        return -3 * deviation
    return bias - deviation * NormalDist().pdf(bias / deviation) / mass


def vid(student: Array, teacher: Array, *, raw_variance: Array, eps: float) -> float:
    total = 0.0
    student, teacher = to_smaller(student, teacher)
    for index in np.ndindex(*student.shape):
        raw = float(raw_variance[index[1]])
        variance = max(raw, 0.0) + math.log1p(math.exp(-abs(raw))) + eps
        total += 0.5 * ((student[index] - teacher[index]) ** 2 / variance + math.log(variance))
    return float(total / student.size)


def hcl(student: Array, teacher: Array) -> float:
    values, weights = [hint(student, teacher)], [1.0]
    for level in (4, 2, 1):
        if level < student.shape[2] and level < student.shape[3]:
            values.append(hint(pool(student, level, level), pool(teacher, level, level)))
            weights.append(weights[-1] / 2)
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
