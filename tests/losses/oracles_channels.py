"""Independent float64 formulas of the channel losses, by explicit loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tests.losses.oracles import log_softmax, pool, to_smaller

Array = np.ndarray[Any, np.dtype[np.float64]]


def cwd(student: Array, teacher: Array, *, temperature: float) -> float:
    student, teacher = to_smaller(student, teacher)
    n, c = student.shape[:2]
    total = 0.0
    for i, j in np.ndindex(n, c):
        log_q, log_p = (log_softmax(x[i, j].ravel() / temperature) for x in (student, teacher))
        total += math.fsum(np.exp(b) * (b - a) for a, b in zip(log_q, log_p, strict=True))
    return temperature**2 * total / (n * c)


def pkd(student: Array, teacher: Array, *, eps: float = 1e-6) -> float:
    student, teacher = to_smaller(student, teacher)
    total = 0.0
    for channel in range(student.shape[1]):
        standardized = []
        for x in (student[:, channel].ravel(), teacher[:, channel].ravel()):
            mean = math.fsum(x) / len(x)
            deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in x) / (len(x) - 1))
            standardized.append([(v - mean) / (deviation + eps) for v in x])
        total += math.fsum((a - b) ** 2 for a, b in zip(*standardized, strict=True))
    return total / (2 * student.size)


def pearson(student: Array, teacher: Array) -> float:
    """Mean over channels of Pearson's correlation over samples and positions."""
    pairs = [(student[:, c].ravel(), teacher[:, c].ravel()) for c in range(student.shape[1])]
    return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairs]))


def pad(student: Array, teacher: Array, log_variance: Array, *, eps: float = 1e-6) -> float:
    terms = [
        (t - s) ** 2 / (eps + math.exp(v)) + v
        for s, t, v in zip(student.ravel(), teacher.ravel(), log_variance.ravel(), strict=True)
    ]
    return math.fsum(terms) / student.size


def channel_correlation(sample: Array) -> Array:
    c = len(sample)
    out = np.zeros((c, c))
    for i in range(c):
        row = [math.fsum(sample[i].ravel() * sample[j].ravel()) for j in range(c)]
        length = math.sqrt(math.fsum(v * v for v in row))
        out[i] = [v / length if length else 0.0 for v in row]
    return out


def ickd(student: Array, teacher: Array) -> float:
    n, c = student.shape[:2]
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        total += math.fsum(((channel_correlation(s) - channel_correlation(t)) ** 2).ravel())
    return total / (n * c)


def class_activation(features: Array, classifier: Array) -> Array:
    n, _, height, width = features.shape
    out = np.zeros((n, len(classifier), height, width))
    for i, c, y, x in np.ndindex(*out.shape):
        out[i, c, y, x] = math.fsum(classifier[c] * features[i, :, y, x])
    return out


def cat_kd(student: Array, teacher: Array, *, resolution: int, normalize: bool) -> float:
    maps = []
    for pooled in (pool(x, resolution, resolution) for x in (student, teacher)):
        for i, c in np.ndindex(*pooled.shape[:2]):
            length = math.sqrt(math.fsum(pooled[i, c].ravel() ** 2))
            if normalize and length:
                pooled[i, c] /= length
        maps.append(pooled)
    return math.fsum(((maps[0] - maps[1]) ** 2).ravel()) / maps[0].size


def srrl(student: Array, teacher: Array, weight: Array, bias: Array, *, alpha: float, beta: float) -> float:
    """Feature matching, and the difference of the logits that the classifier gives of the two."""
    n, d = student.shape
    features, logits = 0.0, 0.0
    for s, t in zip(student, teacher, strict=True):
        features += math.fsum((s - t) ** 2)
        for w, b in zip(weight, bias, strict=True):
            logits += ((w @ s + b) - (w @ t + b)) ** 2
    return alpha * features / (n * d) + beta * logits / (n * len(weight))
