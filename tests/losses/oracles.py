"""Every loss again, in float64 numpy by explicit loops over samples: slow, plain, independent of the package."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max())
    return np.asarray(e / e.sum())


def log_softmax(x: Array) -> Array:
    shifted = x - x.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def kd(student: Array, teacher: Array, *, temperature: float) -> float:
    """T^2 times the mean of sum_c p_c (log p_c - log q_c), in decimal arithmetic of 50 digits: exact at any T."""
    with localcontext() as context:
        context.prec = 50
        t = Decimal(temperature)
        total = Decimal(0)
        for z, v in zip(student.tolist(), teacher.tolist(), strict=True):
            log_q, log_p = ([Decimal(x) / t for x in row] for row in (z, v))
            q_mass, p_mass = (sum(x.exp() for x in row) for row in (log_q, log_p))
            difference = Decimal(q_mass).ln() - Decimal(p_mass).ln()
            total += sum(a.exp() / p_mass * (a - b + difference) for a, b in zip(log_p, log_q, strict=True))
        return float(t**2 * total / len(student))


def kd_gradient(student: Array, teacher: Array, *, temperature: float) -> Array:
    """Gradient of `kd` for the student: T (softmax(z / T) - softmax(v / T)) / N."""
    rows = [softmax(z / temperature) - softmax(v / temperature) for z, v in zip(student, teacher, strict=True)]
    return temperature * np.stack(rows) / len(student)


def logit_mse(student: Array, teacher: Array) -> float:
    total = 0.0
    for z, v in zip(student, teacher, strict=True):
        total += sum(((a - z.mean()) - (b - v.mean())) ** 2 for a, b in zip(z, v, strict=True)) / (2 * len(z))
    return float(total / len(student))


def cross_entropy(logits: Array, targets: Array) -> float:
    """Mean of -sum_c y_c log p_c for target distributions y."""
    return float(np.mean([-(y * log_softmax(z)).sum() for z, y in zip(logits, targets, strict=True)]))


def hint(student: Array, teacher: Array) -> float:
    return math.fsum((a - b) ** 2 for a, b in zip(student.ravel(), teacher.ravel(), strict=True)) / student.size


def pool(features: Array, height: int, width: int) -> Array:
    """Adaptive average pooling: bin i covers rows floor(i H / h) to ceil((i + 1) H / h)."""
    n, c, big_height, big_width = features.shape
    out = np.zeros((n, c, height, width))
    for i in range(height):
        for j in range(width):
            rows = slice(i * big_height // height, -(-(i + 1) * big_height // height))
            columns = slice(j * big_width // width, -(-(j + 1) * big_width // width))
            out[:, :, i, j] = features[:, :, rows, columns].mean(axis=(2, 3))
    return out


def to_smaller(a: Array, b: Array) -> tuple[Array, Array]:
    height, width = min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3])
    return pool(a, height, width), pool(b, height, width)


def attention_map(features: Array) -> Array:
    """One row of unit length a sample."""
    rows = []
    for sample in features:
        energy = np.array([np.mean(sample[:, i, j] ** 2) for i, j in np.ndindex(*sample.shape[1:])])
        length = math.sqrt(math.fsum(energy**2))
        rows.append(energy / length if length else energy)
    return np.stack(rows)


def attention_transfer(student: Array, teacher: Array) -> float:
    student, teacher = to_smaller(student, teacher)
    return float(np.mean((attention_map(student) - attention_map(teacher)) ** 2))


def smooth_l1(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def rkd_distance(student: Array, teacher: Array) -> float:
    n = len(student)

    def relative(x: Array) -> Array:
        distances = np.zeros((n, n))
        for i in range(n):
            for j in range(n):
                if i != j:
                    distances[i, j] = max(math.sqrt(math.fsum((x[i] - x[j]) ** 2)), 1e-6)
        return distances / (distances.sum() / (n * (n - 1)))

    if n == 1:
        return 0.0
    s, t = relative(student), relative(teacher)
    return math.fsum(smooth_l1(s[i, j] - t[i, j]) for i in range(n) for j in range(n)) / n**2


def rkd_angle(student: Array, teacher: Array) -> float:
    n = len(student)

    def cosine(x: Array, i: int, j: int, k: int) -> float:
        a, b = x[i] - x[j], x[k] - x[j]
        lengths = math.sqrt(a @ a) * math.sqrt(b @ b)
        return float(a @ b / lengths) if lengths else 0.0

    triplets = [(i, j, k) for j in range(n) for i in range(n) for k in range(n)]
    return math.fsum(smooth_l1(cosine(student, *m) - cosine(teacher, *m)) for m in triplets) / n**3


def fsp_matrix(a: Array, b: Array) -> Array:
    a, b = to_smaller(a, b)
    n, height, width = len(a), *a.shape[2:]
    out = np.zeros((n, a.shape[1], b.shape[1]))
    for m, i, j in np.ndindex(*out.shape):
        out[m, i, j] = sum(a[m, i, y, x] * b[m, j, y, x] for y in range(height) for x in range(width))
    return out / (height * width)


def fsp(student: tuple[Array, Array], teacher: tuple[Array, Array]) -> float:
    return hint(fsp_matrix(*student), fsp_matrix(*teacher))


def one_hot(labels: list[int], classes: int, *, smoothing: float = 0.0, over: str = "all") -> Array:
    if over == "others":
        off = smoothing / (classes - 1)
        return np.array([[1 - smoothing if c == y else off for c in range(classes)] for y in labels])
    rows = [[(1 - smoothing) * (c == y) + smoothing / classes for c in range(classes)] for y in labels]
    return np.array(rows)


def supervised(exits: list[Array], labels: list[int], *, smoothing: float, over: str = "all") -> float:
    """Cross-entropy of each output on the labels, equal weights."""
    return sum(cross_entropy(z, one_hot(labels, z.shape[1], smoothing=smoothing, over=over)) for z in exits)


def offline_kd(
    student: Array, teachers: list[Array], weights: list[float], labels: list[int], *, alpha: float, temperature: float
) -> float:
    """(1 - alpha) CE + alpha KD against the weighted mean of the teachers' logits."""
    mean = sum(w * v for w, v in zip(weights, teachers, strict=True)) / sum(weights)
    hard = cross_entropy(student, one_hot(labels, student.shape[1]))
    return (1 - alpha) * hard + alpha * kd(student, np.asarray(mean), temperature=temperature)


def dml(peers: list[Array], labels: list[int], *, temperature: float) -> float:
    """For each of K peers CE and the mean over the others of KD towards it."""
    total = 0.0
    for k, student in enumerate(peers):
        others = [teacher for j, teacher in enumerate(peers) if j != k]
        total += cross_entropy(student, one_hot(labels, student.shape[1]))
        total += sum(kd(student, teacher, temperature=temperature) for teacher in others) / len(others)
    return total


def byot(
    deepest: tuple[Array, Array],
    exits: list[tuple[Array, Array]],
    labels: list[int],
    *,
    alpha: float,
    temperature: float,
    hint_weight: float,
) -> float:
    """CE of the deepest; for each exit (1 - alpha) CE + alpha KD from the deepest + a hint to the last feature map."""
    teacher, last = deepest
    target = one_hot(labels, teacher.shape[1])
    total = cross_entropy(teacher, target)
    for student, feature in exits:
        total += (1 - alpha) * cross_entropy(student, target) + alpha * kd(student, teacher, temperature=temperature)
        total += hint_weight * hint(feature, last)
    return total
