"""Pearson correlation of predictions, across classes and across samples: DIST (Huang et al. 2022)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kdschemes.core.precision import full_precision
from kdschemes.losses.rows import without_offset

Epsilon = Literal["none", "added", "clamped"]


@full_precision
def dist(
    student: Float[Tensor, "n c"],
    teacher: Float[Tensor, "n c"],
    *,
    temperature: float,
    beta: float = 2.0,
    gamma: float = 2.0,
    scale: bool = True,
    epsilon: Epsilon = "none",
) -> Float[Tensor, ""]:
    r"""Return $T^2 (\beta (1 - mean_n \rho(P^s_n, P^t_n)) + \gamma (1 - mean_c \rho(P^s_{\cdot c}, P^t_{\cdot c})))$.

    Huang et al. 2022, "Knowledge Distillation from A Stronger Teacher". P is the $N \times C$ matrix of softmaxes at T
    and $\rho$ the Pearson correlation: of rows (inter-class), then of columns (intra-class). Columns run over samples:
    pass the whole batch. Gradients flow to both. `scale=False` omits $T^2$.

    $\rho$ is scale-invariant. With `epsilon='none'`, rows and columns are rescaled before anything can underflow, and
    $1 - \rho = \frac12 \|a - b\|^2$ of unit vectors is never negative. A constant row or column (every column of a
    batch of 1) has $\rho = 0$, as in the references, and no gradient. The references divide by $|a| |b| + 10^{-8}$
    ('added', the authors) or clamp each norm to at least $10^{-8}$ ('clamped', torchdistill): at high temperatures or
    with many classes, this is not small compared to $|a| |b|$, so $\rho$ and its gradient tend to 0.
    """
    assert temperature > 0, temperature
    student, teacher = without_offset(student), without_offset(teacher)
    ratios = _log_ratio_to_uniform(student / temperature), _log_ratio_to_uniform(teacher / temperature)
    distance = _exact_distance if epsilon == "none" else _guarded_distance
    value = beta * distance(*ratios, 1, epsilon).mean() + gamma * distance(*ratios, 0, epsilon).mean()
    return temperature**2 * value if scale else value


def _log_ratio_to_uniform(logits: Tensor) -> Tensor:
    """Return log(C p), p the softmax of the logits, to full relative precision even if p is nearly uniform."""
    below = logits - logits.detach().amax(dim=1, keepdim=True)
    mean = torch.expm1(below).mean(dim=1, keepdim=True)
    return torch.where(
        mean > -0.5, below - torch.log1p(mean), functional.log_softmax(logits, dim=1) + math.log(logits.shape[1])
    )


def _exact_distance(log_a: Tensor, log_b: Tensor, dim: int, _: Epsilon) -> Tensor:
    (a, a_varies), (b, b_varies) = _unit_deviations(log_a, dim), _unit_deviations(log_b, dim)
    return torch.where(a_varies & b_varies, 0.5 * (a - b).square().sum(dim=dim), 1.0)


def _unit_deviations(log_x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return x - mean(x), L2-normalized (0 if x is constant), and whether x varies; the scale of x cancels."""
    deviations = _relative_deviations(log_x, dim)
    largest = deviations.detach().abs().amax(dim=dim, keepdim=True)
    varies = largest != 0
    deviations = deviations / torch.where(varies, largest, 1.0)
    square = deviations.square().sum(dim=dim, keepdim=True)
    return deviations / torch.where(varies, square, 1.0).sqrt(), varies.squeeze(dim)


def _relative_deviations(log_x: Tensor, dim: int) -> Tensor:
    """Return x - mean(x), divided by the largest x (detached)."""
    relative = torch.expm1(log_x - log_x.detach().amax(dim=dim, keepdim=True))
    return relative - relative.mean(dim=dim, keepdim=True)


def _guarded_distance(log_a: Tensor, log_b: Tensor, dim: int, epsilon: Epsilon) -> Tensor:
    (a, a_varies), (b, b_varies) = _deviations(log_a, dim), _deviations(log_b, dim)
    if epsilon == "clamped":
        correlation = functional.cosine_similarity(a, b, dim=dim, eps=1e-8)
    else:
        norms = torch.linalg.vector_norm(a, dim=dim) * torch.linalg.vector_norm(b, dim=dim)
        correlation = (a * b).sum(dim=dim) / (norms + 1e-8)
    return torch.where(a_varies & b_varies, 1.0 - correlation, 1.0)


def _deviations(log_ratio: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return p - mean(p), given log(C p), and whether p varies."""
    relative = _relative_deviations(log_ratio, dim)
    largest = log_ratio.detach().amax(dim=dim, keepdim=True).exp() / log_ratio.shape[1]
    return relative * largest, relative.detach().any(dim=dim)
