"""What the totals of the online methods share, in float64 numpy, independent of the package."""

from __future__ import annotations

import math

import numpy as np

from tests.losses import oracles
from tests.losses.oracles import Array
from tests.schemes.formulas import Seen


def peers_of(seen: Seen) -> list[Array]:
    """The logits of the peers."""
    return [seen.logits(name) for name in seen.scheme.peers]


def temperature_of(seen: Seen) -> float:
    return float(seen.config.losses.response.temperature)


def soft_weight(seen: Seen) -> float:
    """The weight of the response, which a ramp exp(-5 (1 - e / R)^2) raises up to epoch R."""
    response, epoch = seen.config.losses.response, seen.progress.step / seen.progress.steps_per_epoch
    ramp = math.exp(-5.0 * (1.0 - min(epoch / response.ramp_epochs, 1.0)) ** 2)
    return float(response.weight * (ramp if response.schedule == "sigmoid" else 1.0))


def hard(logits: Array, labels: list[int]) -> float:
    return oracles.cross_entropy(logits, oracles.one_hot(labels, logits.shape[1]))


def taught(peers: list[Array], teachers: list[Array], labels: list[int], *, temperature: float) -> float:
    """The sum over peers of CE and of KD from the peer's teacher."""
    total = oracles.supervised(peers, labels, smoothing=0.0)
    return total + sum(oracles.kd(z, v, temperature=temperature) for z, v in zip(peers, teachers, strict=True))


def linear_mix(peers: list[Array], labels: list[int]) -> tuple[Array, list[float]]:
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


def batch_norm(x: Array, scale: Array, shift: Array, eps: float = 1e-5) -> Array:
    """Batch norm in training of [n, c] or [n, c, h, w]: biased variance over all but the channels."""
    axes = (0, *range(2, x.ndim))
    shape = (1, -1, *[1] * (x.ndim - 2))
    mean, variance = x.mean(axes), x.var(axes)
    normal = (x - mean.reshape(shape)) / np.sqrt(variance + eps).reshape(shape)
    return np.asarray(normal * scale.reshape(shape) + shift.reshape(shape))
