"""The losses of self-distillation methods again, in float64 numpy by explicit loops."""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import rankdata

from tests.losses.oracles import Array, cross_entropy, kd, log_softmax, one_hot, softmax
from tests.losses.oracles_adaptive import uskd_non_target, uskd_target, uskd_weak


def ddgsd(
    views: tuple[Array, Array], features: tuple[Array, Array], labels: list[int], *, temperature: float, gap: float
) -> float:
    """CE of both views, KD each from the other, and a multiple of the distance of the mean features by channel."""
    first, second = views
    target = one_hot(labels, first.shape[1])
    total = cross_entropy(first, target) + cross_entropy(second, target)
    total += kd(first, second, temperature=temperature) + kd(second, first, temperature=temperature)
    means = [[math.fsum(row[d] for row in rows) / len(rows) for d in range(rows.shape[1])] for rows in features]
    return total + gap * math.fsum((a - b) ** 2 for a, b in zip(*means, strict=True))


def ddgsd_scalar_gap(features: tuple[Array, Array]) -> float:
    means = [math.fsum(rows.ravel()) / rows.size for rows in features]
    return (means[0] - means[1]) ** 2


def cskd(student: Array, same_class: Array, labels: list[int], *, temperature: float) -> float:
    return cross_entropy(student, one_hot(labels, student.shape[1])) + kd(student, same_class, temperature=temperature)


def pskd(student: Array, past: Array, labels: list[int], *, alpha: float) -> float:
    """Cross-entropy with (1 - alpha) onehot + alpha p, p the probabilities of the epoch before."""
    total = 0.0
    for z, p, y in zip(student, past, labels, strict=True):
        for c, log_q in enumerate(log_softmax(z)):
            total -= ((1 - alpha) * (c == y) + alpha * p[c]) * log_q
    return total / len(student)


def dlb(
    now: Array, again: Array, then: Array, labels: list[int], labels_again: list[int], *, temperature: float
) -> float:
    """CE over the samples of both batches, KD from the answers of then on the ones seen again."""
    rows = [(z, y) for z, y in zip([*now, *again], [*labels, *labels_again], strict=True)]
    hard = -math.fsum(log_softmax(z)[y] for z, y in rows) / len(rows)
    return hard + (kd(again, then, temperature=temperature) if len(again) else 0.0)


def enlarge(plane: Array, factor: int) -> Array:
    """Bilinear interpolation of a plane whose pixels are squares: centers at half integers, the border repeated."""
    height, width = plane.shape

    def place(i: int, length: int) -> tuple[int, int, float]:
        at = max((i + 0.5) / factor - 0.5, 0.0)
        low = math.floor(at)
        return low, min(low + 1, length - 1), at - low

    out = np.zeros((height * factor, width * factor))
    for i, j in np.ndindex(*out.shape):
        top, bottom, down = place(i, height)
        left, right, across = place(j, width)
        upper = (1 - across) * plane[top, left] + across * plane[top, right]
        lower = (1 - across) * plane[bottom, left] + across * plane[bottom, right]
        out[i, j] = (1 - down) * upper + down * lower
    return out


def votes(features: Array, weight: Array, bias: Array, *, factor: int) -> Array:
    """For each class the number of positions of the enlarged map that the classifier gives to it."""
    counts = np.zeros((len(features), len(weight)))
    for n, sample in enumerate(features):
        planes = np.stack([enlarge(plane, factor) for plane in sample])
        for i, j in np.ndindex(*planes.shape[1:]):
            scores = [math.fsum(w * planes[:, i, j]) + b for w, b in zip(weight, bias, strict=True)]
            counts[n, int(np.argmax(scores))] += 1
    return counts


def zipf(student: Array, scores: Array, labels: list[int], *, power: float) -> float:
    """KL of the law over the other classes, ranked among all with ties at the best rank, and the student's output."""
    total = 0.0
    for z, score, y in zip(student, scores, labels, strict=True):
        rank = rankdata(-score, method="min")
        others = [c for c in range(len(z)) if c != y]
        share = np.array([1.0 / rank[c] ** power for c in others])
        q = share / share.sum()
        total += math.fsum(q * (np.log(q) - log_softmax(z[others])))
    return total / len(student)


def uskd(
    student: Array, weak: Array, labels: list[int], *, alpha: float, beta: float, mu: float, smoothing: float, rank: str
) -> float:
    parts = alpha * uskd_target(student, labels) + beta * uskd_non_target(student, weak, labels, rank=rank)
    return parts + mu * uskd_weak(weak, labels, smoothing=smoothing)


def probabilities(logits: Array) -> Array:
    return np.stack([softmax(z) for z in logits])
