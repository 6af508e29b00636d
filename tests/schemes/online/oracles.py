"""The online methods of peers of their own again, in float64 numpy, by explicit loops, independent of the package."""

from __future__ import annotations

import math

import numpy as np

from tests.losses import oracles
from tests.losses.oracles import Array


def taught(peers: list[Array], teachers: list[Array], labels: list[int], *, temperature: float) -> float:
    """The sum over peers of CE and of KD from each one's teacher."""
    total = oracles.supervised(peers, labels, smoothing=0.0)
    return total + sum(oracles.kd(z, v, temperature=temperature) for z, v in zip(peers, teachers, strict=True))


def mean_of(members: list[Array], average: str) -> Array:
    if average == "logits":
        return np.asarray(sum(members) / len(members))
    p = [np.stack([oracles.softmax(row) for row in z]) for z in members]
    return np.asarray(np.log(sum(p) / len(p)))


def naive(peers: list[Array], labels: list[int]) -> Array:
    rows = []
    for n, label in enumerate(labels):
        losses = [-oracles.log_softmax(z[n])[label] for z in peers]
        rows.append(peers[losses.index(min(losses))][n])
    return np.stack(rows)


def minlogit(peers: list[Array], labels: list[int]) -> Array:
    out = np.zeros_like(peers[0])
    for n, label in enumerate(labels):
        for c in range(out.shape[1]):
            out[n, c] = min(z[n, c] - z[n, label] for z in peers)
    return out


def linear(peers: list[Array], labels: list[int]) -> tuple[Array, list[float]]:
    """The convex mix of two peers with the least cross-entropy, and its weights, by bisection on the derivative."""
    first, second = peers

    def slope(share: float) -> float:
        total = 0.0
        for z, v, label in zip(first, second, labels, strict=True):
            p = oracles.softmax(share * z + (1 - share) * v)
            total += math.fsum(p * (z - v)) - (z - v)[label]
        return total

    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    share = 0.0 if slope(0.0) >= 0 else 1.0 if slope(1.0) <= 0 else (low + high) / 2
    return share * first + (1 - share) * second, [share, 1 - share]


def weighed(peers: list[Array], weights: list[float]) -> Array:
    return np.asarray(sum(w * z for w, z in zip(weights, peers, strict=True)))


def error_products(peers: list[Array], labels: list[int]) -> Array:
    """The sum over samples of <p_i - y, p_j - y>."""
    products = np.zeros((len(peers), len(peers)))
    for n, label in enumerate(labels):
        errors = []
        for z in peers:
            error = oracles.softmax(z[n])
            error[label] -= 1.0
            errors.append(error)
        for i, a in enumerate(errors):
            for j, b in enumerate(errors):
                products[i, j] += math.fsum(a * b)
    return products


def switch(small: Array, big: Array, labels: list[int]) -> tuple[float, float, bool]:
    """The gap of the two networks, the largest gap at which both learn, and whether the big one rests."""
    gap = of_small = of_big = 0.0
    for z, v, label in zip(small, big, labels, strict=True):
        p, q = oracles.softmax(z), oracles.softmax(v)
        for c in range(len(p)):
            gap += abs(p[c] - q[c]) / len(labels)
            of_small += abs(p[c] - (c == label)) / len(labels)
            of_big += abs(q[c] - (c == label)) / len(labels)
    threshold = of_small - math.exp(-of_big / (of_small + of_big)) * of_big
    return gap, threshold, gap > threshold and of_big < of_small
