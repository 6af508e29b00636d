"""The online methods with branches again, in float64 numpy: gate, attention, fusion and the totals, step by step."""

from __future__ import annotations

import math

import numpy as np

from tests.losses.oracles import Array, cross_entropy, kd, one_hot, softmax


def hard(logits: Array, labels: list[int]) -> float:
    return cross_entropy(logits, one_hot(labels, logits.shape[1]))


def sigmoid_ramp(epoch: float, epochs: float) -> float:
    """exp(-5 (1 - e / R)^2), 1 from epoch R on."""
    return math.exp(-5.0 * (1.0 - min(epoch / epochs, 1.0)) ** 2)


def mean_of_others(logits: list[Array], k: int) -> Array:
    others = [z for j, z in enumerate(logits) if j != k]
    return np.asarray(sum(others) / len(others))


def batch_norm(x: Array, scale: Array, shift: Array, eps: float = 1e-5) -> Array:
    """Batch norm in training of [n, c] or [n, c, h, w]: biased variance over all but the channels."""
    axes = (0, *range(2, x.ndim))
    shape = (1, -1, *[1] * (x.ndim - 2))
    mean, variance = x.mean(axes), x.var(axes)
    normal = (x - mean.reshape(shape)) / np.sqrt(variance + eps).reshape(shape)
    return np.asarray(normal * scale.reshape(shape) + shift.reshape(shape))


def gate(seen: list[Array], weight: Array, bias: Array, scale: Array, shift: Array) -> Array:
    """[n, m]: softmax(ReLU(BN(fc))) of the averaged map that each branch reads."""
    scores = np.stack([x.mean((2, 3)) @ weight[i] + bias[i] for i, x in enumerate(seen)], axis=1)
    positive = np.maximum(batch_norm(scores, scale, shift), 0.0)
    return np.stack([softmax(row) for row in positive])


def gated(logits: list[Array], gates: Array) -> Array:
    return np.stack([sum(g * z[n] for g, z in zip(row, logits, strict=True)) for n, row in enumerate(gates)])


def attended(logits: list[Array], features: list[Array], query: Array, key: Array) -> list[Array]:
    """Each peer's target: all peers' logits, weighed by softmax over b of q_a . k_b, sample by sample."""
    targets = [np.zeros_like(z) for z in logits]
    for n in range(len(logits[0])):
        keys = [key @ f[n] for f in features]
        for a, f in enumerate(features):
            weights = softmax(np.array([(query @ f[n]) @ k for k in keys]))
            targets[a][n] = sum(w * z[n] for w, z in zip(weights, logits, strict=True))
    return targets


def fused(maps: list[Array], depthwise: Array, first: list[Array], pointwise: Array, second: list[Array]) -> Array:
    """The fused map: depthwise 3x3, batch norm, ReLU, 1x1, batch norm, ReLU of maps joined by channels."""
    x = np.concatenate(maps, axis=1)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    out = np.zeros_like(x)
    for i in range(3):
        for j in range(3):
            window = padded[:, :, i : i + x.shape[2], j : j + x.shape[3]]
            out += depthwise[:, 0, i, j][None, :, None, None] * window
    out = np.maximum(batch_norm(out, *first), 0.0)
    mixed = np.einsum("nchw,dc->ndhw", out, pointwise[:, :, 0, 0])
    return np.maximum(batch_norm(mixed, *second), 0.0)


def clilr(logits: list[Array], labels: list[int], *, alpha: float, temperature: float) -> float:
    total = 0.0
    for k, z in enumerate(logits):
        soft = kd(z, mean_of_others(logits, k), temperature=temperature)
        total += (1 - alpha) * hard(z, labels) + alpha * soft
    return total


def one(logits: list[Array], ensemble: Array, labels: list[int], *, weight: float, temperature: float) -> float:
    total = hard(ensemble, labels)
    return total + sum(hard(z, labels) + weight * kd(z, ensemble, temperature=temperature) for z in logits)


def okddip(
    logits: list[Array], leader: Array, targets: list[Array], labels: list[int], *, weight: float, temperature: float
) -> float:
    mean = np.asarray(sum(logits) / len(logits))
    total = hard(leader, labels) + weight * kd(leader, mean, temperature=temperature)
    for z, target in zip(logits, targets, strict=True):
        total += hard(z, labels) + weight * kd(z, target, temperature=temperature)
    return total


def ffl(logits: list[Array], fused_logits: Array, labels: list[int], *, weight: float, temperature: float) -> float:
    mean = np.asarray(sum(logits) / len(logits))
    total = hard(fused_logits, labels) + weight * kd(fused_logits, mean, temperature=temperature)
    return total + sum(hard(z, labels) + weight * kd(z, fused_logits, temperature=temperature) for z in logits)


def pcl(
    logits: list[Array],
    ensemble: Array,
    averages: list[Array],
    labels: list[int],
    *,
    weight: float,
    temperature: float,
) -> float:
    total = hard(ensemble, labels)
    for j, z in enumerate(logits):
        others = [kd(z, m, temperature=temperature) for k, m in enumerate(averages) if k != j]
        soft = kd(z, ensemble, temperature=temperature) + sum(others) / len(others)
        total += hard(z, labels) + weight * soft
    return total
