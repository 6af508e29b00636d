"""Correlations of softened predictions: between the samples of a batch, and between classes."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from kdschemes.core.precision import full_precision
from kdschemes.losses.rows import without_offset


@full_precision
def batch_correlation(
    student: Float[Tensor, "n c"],
    teacher: Float[Tensor, "n c"],
    *,
    temperature: float,
    keep: Bool[Tensor, " n"] | None = None,
) -> Float[Tensor, ""]:
    r"""Return $\frac1N \sum_{ij} (P^t P^{t\top} - P^s P^{s\top})_{ij}^2$, $P = softmax(\cdot / T)$ of size N x C.

    Jin, Wang, Lin 2023, "Multi-Level Logit Distillation", with the scale of the authors' code: a sum over both
    samples divided by N once (it grows with the batch), no $T^2$. Gradients flow to both. Depends on pairs of samples:
    pass the whole batch.

    Args:
        student: logits.
        teacher: logits.
        temperature: T > 0.
        keep: the samples i to include (default: all). The sum is still divided by N.
    """
    p, q = _probabilities(teacher, temperature), _probabilities(student, temperature)
    return _difference_of_products(p, q, keep) / len(student)


@full_precision
def class_correlation(
    student: Float[Tensor, "n c"],
    teacher: Float[Tensor, "n c"],
    *,
    temperature: float,
    keep: Bool[Tensor, " c"] | None = None,
) -> Float[Tensor, ""]:
    r"""Return $\frac1C \sum_{ij} (P^{t\top} P^t - P^{s\top} P^s)_{ij}^2$, $P = softmax(\cdot / T)$ of size N x C.

    Jin, Wang, Lin 2023, "Multi-Level Logit Distillation", with the scale of the authors' code: a sum over samples
    inside the square and over both classes outside, divided by C once, no $T^2$. Gradients flow to both. Not a mean
    over samples: pass the whole batch.

    Args:
        student: logits.
        teacher: logits.
        temperature: T > 0.
        keep: the classes i to include (default: all). The sum is still divided by C.
    """
    p, q = _probabilities(teacher, temperature), _probabilities(student, temperature)
    return _difference_of_products(p.mT, q.mT, keep) / student.shape[1]


def _probabilities(logits: Tensor, temperature: float) -> Tensor:
    assert temperature > 0, temperature
    return (without_offset(logits) / temperature).softmax(dim=1)


def _difference_of_products(p: Tensor, q: Tensor, keep: Tensor | None) -> Tensor:
    """Return the sum of squares of `p p^T - q q^T`, from symmetrized `(p - q)(p + q)^T` to avoid cancellation."""
    half = 0.5 * (p - q) @ (p + q).mT
    squares = (half + half.mT).square()
    return squares.sum() if keep is None else squares.sum(dim=1).masked_fill(~keep, 0.0).sum()
