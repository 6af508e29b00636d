"""Self-distillation between exits and stages again, in float64 numpy by explicit loops, independent of the package."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from tests.losses.oracles import Array, attention_transfer, cross_entropy, kd, one_hot, softmax


def soft_ce(student: Array, teacher: Array, *, temperature: float) -> float:
    """Cross-entropy of the student's softened output with the teacher's, without T^2."""
    targets = np.stack([softmax(v / temperature) for v in teacher])
    return cross_entropy(student / temperature, targets)


def byot_authors(
    deepest: tuple[Array, Array], exits: list[tuple[Array, Array]], labels: list[int], *, alpha: float, beta: float
) -> float:
    """ArchipLab's code at T = 3: no T^2, an un-squared norm, none for the deepest of the exits (shallow to deep)."""
    teacher, last = deepest
    target = one_hot(labels, teacher.shape[1])
    total = cross_entropy(teacher, target)
    for number, (student, feature) in enumerate(exits, start=1):
        total += alpha * soft_ce(student, teacher, temperature=3.0) + (1 - alpha) * cross_entropy(student, target)
        if number < len(exits):
            total += beta * math.sqrt(math.fsum(((feature - last) ** 2).ravel()))
    return total


def byot_luanyunteng(
    deepest: tuple[Array, Array], exits: list[tuple[Array, Array]], labels: list[int], *, alpha: float, beta: float
) -> float:
    """luanyunteng's code at T = 3: 1 - alpha for all, and a sum over samples and the features active in either."""
    teacher, last = deepest
    target = one_hot(labels, teacher.shape[1])
    total = (1 - alpha) * cross_entropy(teacher, target)
    for student, feature in exits:
        total += (1 - alpha) * cross_entropy(student, target) + alpha * 9 * soft_ce(student, teacher, temperature=3.0)
        pairs = zip(feature.ravel(), last.ravel(), strict=True)
        total += beta * math.fsum((f - g) ** 2 for f, g in pairs if f > 0 or g > 0)
    return total


def multi_exit(
    deepest: Array, exits: list[Array], labels: list[int], *, alpha: float, last: float, temperature: float
) -> float:
    target = one_hot(labels, deepest.shape[1])
    total = last * cross_entropy(deepest, target)
    for student in exits:
        soft = temperature**2 * soft_ce(student, deepest, temperature=temperature)
        total += (1 - alpha) * cross_entropy(student, target) + alpha * soft
    return total


def sureness(logits: Array, *, temperature: float) -> float:
    """Mean over samples of the highest softened probability."""
    return float(np.mean([softmax(z / temperature).max() for z in logits]))


def bilinear(maps: Array, height: int, width: int) -> Array:
    """Enlarge by bilinear interpolation between pixel centers, clamped at the border."""
    out = np.zeros((*maps.shape[:2], height, width))

    def between(position: int, size: int, old: int) -> tuple[int, int, float]:
        x = max((position + 0.5) * old / size - 0.5, 0.0)
        low = min(int(x), old - 1)
        return low, min(low + 1, old - 1), x - low

    for i, j in np.ndindex(height, width):
        top, bottom, a = between(i, height, maps.shape[2])
        left, right, b = between(j, width, maps.shape[3])
        upper = (1 - b) * maps[:, :, top, left] + b * maps[:, :, top, right]
        lower = (1 - b) * maps[:, :, bottom, left] + b * maps[:, :, bottom, right]
        out[:, :, i, j] = (1 - a) * upper + a * lower
    return out


def self_attention(
    shallow: Array,
    deep: Array,
    *,
    channel_reduction: str = "mean",
    upsample: str = "features",
    spatial_reduction: str = "mean",
) -> float:
    height, width = shallow.shape[2:]

    def energy(maps: Array) -> Array:
        total = (maps**2).sum(axis=1, keepdims=True)
        return total / maps.shape[1] if channel_reduction == "mean" else total

    theirs = energy(bilinear(deep, height, width)) if upsample == "features" else energy(deep)
    theirs = bilinear(theirs, height, width) if upsample == "attention" else theirs
    total = 0.0
    for ours, other in zip(energy(shallow), theirs, strict=True):
        total += float(((softmax(ours.ravel()) - softmax(other.ravel())) ** 2).sum())
    return total / len(shallow) / (height * width if spatial_reduction == "mean" else 1)


def frskd(
    student: tuple[Array, list[Array]],
    teacher: tuple[Array, list[Array]],
    labels: list[int],
    *,
    temperature: float,
    alpha: float,
    beta: float,
) -> float:
    """CE of both, alpha KD and beta attention transfer of every pair of maps with more than one position."""
    (z, maps), (v, refined) = student, teacher
    target = one_hot(labels, z.shape[1])
    total = cross_entropy(z, target) + cross_entropy(v, target) + alpha * kd(z, v, temperature=temperature)
    pairs = [(f, g) for f, g in zip(maps, refined, strict=True) if f[0, 0].size > 1]
    return total + beta * sum(attention_transfer(f, g) for f, g in pairs)


State = Mapping[str, Array]


def bifpn(maps: list[Array], state: State, *, depth: int) -> list[Array]:
    """The pyramid in training mode, from the names and values of its weights, written along the paper's figure."""
    maps = [np.maximum(m, 0) for m in maps]
    n = len(maps)
    lateral = [pointwise(m, state, f"lateral_up.{i}") for i, m in enumerate(maps)]
    top_down: dict[int, Array] = {n - 1: lateral[n - 1]}
    for i in range(n - 2, -1, -1):
        deeper = pointwise(nearest(top_down[i + 1], *maps[i].shape[2:]), state, f"up.{i}")
        fused = fuse([lateral[i], deeper], state[f"fuse_up.{i}.weights"])
        top_down[i] = np.maximum(block(fused, state, f"block_up.{i}", depth), 0)
    out = [top_down[0]]
    for i in range(1, n):
        k = i - 1
        inputs = [pointwise(maps[i], state, f"lateral_down.{k}")]
        if i < n - 1:
            inputs.append(top_down[i])
        down = out[k]
        while down.shape[2] > maps[i].shape[2]:
            down = maximum(down)
        inputs.append(pointwise(down, state, f"down.{k}"))
        fused = fuse(inputs, state[f"fuse_down.{k}.weights"])
        out.append(np.maximum(block(fused, state, f"block_down.{k}", depth), 0))
    return out


def fuse(inputs: list[Array], weights: Array) -> Array:
    positive = np.maximum(weights, 0)
    total = np.zeros_like(inputs[0])
    for weight, x in zip(positive, inputs, strict=True):
        total += weight / (positive.sum() + 1e-6) * x
    return total


def normalize(x: Array, scale: Array, shift: Array) -> Array:
    mean, variance = x.mean(axis=(0, 2, 3), keepdims=True), x.var(axis=(0, 2, 3), keepdims=True)
    shape = (1, -1, 1, 1)
    return np.asarray((x - mean) / np.sqrt(variance + 1e-5) * scale.reshape(shape) + shift.reshape(shape))


def pointwise(x: Array, state: State, name: str) -> Array:
    x = np.einsum("nchw,dc->ndhw", x, state[f"{name}.0.weight"][:, :, 0, 0])
    return np.maximum(normalize(x, state[f"{name}.1.weight"], state[f"{name}.1.bias"]), 0)


def block(x: Array, state: State, name: str, depth: int) -> Array:
    for layer in range(depth):
        at = 4 * layer
        x = depthwise(np.maximum(x, 0) if layer else x, state[f"{name}.{at}.weight"])
        x = np.einsum("nchw,dc->ndhw", x, state[f"{name}.{at + 1}.weight"][:, :, 0, 0])
        x = normalize(x, state[f"{name}.{at + 2}.weight"], state[f"{name}.{at + 2}.bias"])
    return x


def depthwise(x: Array, kernel: Array) -> Array:
    height, width = x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    out = np.zeros_like(x)
    for a, b in np.ndindex(3, 3):
        out += padded[:, :, a : a + height, b : b + width] * kernel[None, :, 0, a, b, None, None]
    return out


def nearest(x: Array, height: int, width: int) -> Array:
    rows = [i * x.shape[2] // height for i in range(height)]
    columns = [j * x.shape[3] // width for j in range(width)]
    return x[:, :, rows][:, :, :, columns]


def maximum(x: Array) -> Array:
    """3x3 maxima of stride 2 of a map that is not negative: ceil(side / 2), zeros around it."""
    half = [-(-side // 2) for side in x.shape[2:]]
    before = [side % 2 for side in x.shape[2:]]
    padded = np.pad(x, ((0, 0), (0, 0), (before[0], 2), (before[1], 2)))
    out = np.zeros((*x.shape[:2], *half))
    for i, j in np.ndindex(*half):
        out[:, :, i, j] = padded[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max(axis=(2, 3))
    return out
