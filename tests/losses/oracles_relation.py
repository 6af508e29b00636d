"""Independent float64 formulas of the relation losses."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


def dot(a: Array, b: Array) -> float:
    return math.fsum(x * y for x, y in zip(a.ravel(), b.ravel(), strict=True))


def length(row: Array, order: int = 2) -> float:
    return math.fsum(abs(x) ** order for x in row.ravel()) ** (1 / order)


def unit(row: Array, order: int = 2) -> Array:
    return row / length(row, order) if length(row, order) else row


def fsp_matrix_of_max(a: Array, b: Array) -> Array:
    """Flow between two stages, the larger max-pooled: bin i covers rows floor(i H / h) to ceil((i + 1) H / h)."""
    height, width = min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3])

    def position(x: Array, n: int, c: int, i: int, j: int) -> float:
        rows = slice(i * x.shape[2] // height, -(-(i + 1) * x.shape[2] // height))
        columns = slice(j * x.shape[3] // width, -(-(j + 1) * x.shape[3] // width))
        return float(x[n, c, rows, columns].max())

    out = np.zeros((len(a), a.shape[1], b.shape[1]))
    for n, c, d in np.ndindex(*out.shape):
        for i, j in np.ndindex(height, width):
            out[n, c, d] += position(a, n, c, i, j) * position(b, n, d, i, j) / (height * width)
    return out


def fsp_of_columns(student: tuple[Array, Array], teacher: tuple[Array, Array]) -> float:
    gap = fsp_matrix_of_max(*student) - fsp_matrix_of_max(*teacher)
    return math.fsum(length(gap[n, :, j]) for n in range(len(gap)) for j in range(gap.shape[2])) / len(gap)


def similarity_preserving(student: Array, teacher: Array, *, order: int = 2) -> float:
    n = len(student)
    gram = [np.array([[dot(x[i], x[j]) for j in range(n)] for i in range(n)]) for x in (student, teacher)]
    s, t = ([unit(row, order) for row in g] for g in gram)
    return math.fsum((s[i][j] - t[i][j]) ** 2 for i in range(n) for j in range(n)) / n**2


def neighbor_congruence(student: Array, teacher: Array) -> float:
    n = len(student)
    if n == 1:
        return 0.0
    total = 0.0
    for i in range(n - 1):
        for d in range(student.shape[1]):
            total += abs(student[i, d] - teacher[i, d]) * abs(student[i + 1, d] - teacher[i + 1, d])
    return total / (n - 1)


def kernel_congruence(student: Array, teacher: Array, *, gamma: float, order: int) -> float:
    n = len(student)

    def kernel(x: Array, i: int, j: int) -> float:
        cosine = dot(unit(x[i]), unit(x[j]))
        return math.exp(-2 * gamma) * sum((2 * gamma * cosine) ** p / math.factorial(p) for p in range(order + 1))

    pairs = [(i, j) for i in range(n) for j in range(n)]
    return math.fsum((kernel(student, *m) - kernel(teacher, *m)) ** 2 for m in pairs) / n**2


def probabilistic_transfer(student: Array, teacher: Array, *, eps: float = 1e-7) -> float:
    n = len(student)

    def neighbors(x: Array) -> Array:
        units = [row / (length(row) + eps) for row in x]
        kernel = np.array([[(dot(a, b) + 1) / 2 for b in units] for a in units])
        return kernel / kernel.sum(axis=1, keepdims=True)

    q, p = neighbors(student), neighbors(teacher)
    return math.fsum(p[i, j] * math.log((p[i, j] + eps) / (q[i, j] + eps)) for i in range(n) for j in range(n)) / n**2


def relative_to_largest(distances: Array) -> Array:
    return distances / distances.max() if distances.max() else distances


def irg_edges(features: Array) -> Array:
    n = len(features)
    return relative_to_largest(np.array([[length(features[i] - features[j]) ** 2 for j in range(n)] for i in range(n)]))


def average_channels(features: Array, channels: int) -> Array:
    """Group i averages channels floor(i C / c) to ceil((i + 1) C / c)."""
    every = features.shape[1]
    groups = [slice(i * every // channels, -(-(i + 1) * every // channels)) for i in range(channels)]
    return np.stack([features[:, group].mean(axis=1) for group in groups], axis=1)


def irg_transformation(a: Array, b: Array) -> Array:
    """Of maps that already have the same height and width."""
    channels = min(a.shape[1], b.shape[1])
    gap = average_channels(a, channels) - average_channels(b, channels)
    return relative_to_largest(np.array([length(sample) ** 2 for sample in gap]))


def irg(
    logits: tuple[Array, Array],
    student: list[Array],
    teacher: list[Array],
    *,
    vertices: float = 0.1,
    edges: float = 5.0,
    transformations: float = 5.0,
) -> float:
    """The three parts of lists of maps of one size by stage: means of squared differences."""

    def graphs(maps: list[Array]) -> list[Array]:
        return [irg_edges(f) for f in [*maps, maps[-1].mean(axis=(2, 3))]]

    def steps(maps: list[Array]) -> list[Array]:
        return [irg_transformation(a, b) for a, b in pairwise(maps)]

    def gap(ours: list[Array], theirs: list[Array]) -> float:
        return float(np.mean([np.mean((a - b) ** 2) for a, b in zip(ours, theirs, strict=True)]))

    return (
        vertices * gap([logits[0]], [logits[1]])
        + edges * gap(graphs(student), graphs(teacher))
        + transformations * gap(steps(student), steps(teacher))
    )


class Contrast:
    """Two memories, and Z from the first batch: the loss of one batch, after which the batch's rows are refreshed."""

    def __init__(
        self, student_memory: Array, teacher_memory: Array, *, temperature: float, momentum: float, population: int
    ) -> None:
        self.memories = {"student": student_memory.copy(), "teacher": teacher_memory.copy()}
        self.z: dict[str, float] = {}
        self.temperature = temperature
        self.momentum = momentum
        self.population = population

    def step(self, student: Array, teacher: Array, samples: Any) -> float:
        n, drawn = samples.shape
        share = (drawn - 1) / self.population
        total = 0.0
        embeddings = {"student": [unit(e) for e in student], "teacher": [unit(e) for e in teacher]}
        for side, other in (("student", "teacher"), ("teacher", "student")):
            scores = np.zeros((n, drawn))
            for i, k in np.ndindex(n, drawn):
                scores[i, k] = math.exp(
                    dot(embeddings[side][i], self.memories[other][samples[i, k]]) / self.temperature
                )
            self.z.setdefault(side, float(scores.mean()) * self.population)
            p = scores / self.z[side]
            for i in range(n):
                total -= math.log(p[i, 0] / (p[i, 0] + share + 1e-7)) / n
                for k in range(1, drawn):
                    total -= math.log(share / (p[i, k] + share + 1e-7)) / n
        for side in ("student", "teacher"):
            for i in range(n):
                row = samples[i, 0]
                old = self.memories[side][row]
                self.memories[side][row] = unit(self.momentum * old + (1 - self.momentum) * embeddings[side][i])
        return total
