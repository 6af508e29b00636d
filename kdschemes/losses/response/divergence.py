"""Per-sample Kullback-Leibler divergence that is accurate for close outputs."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kdschemes.losses.rows import without_offset

_SERIES_BELOW = 0.25

_SERIES_TERMS = 12

_PLAIN_ABOVE = 50.0


def divergence(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], *, temperature: float = 1.0
) -> Float[Tensor, " n"]:
    r"""Return $KL(p_T(v_n) \| p_T(z_n))$ of every sample, $p_T(x) = softmax(x / T)$: natural logarithm, no $T^2$.

    Gradients flow to both. Both tensors have the same dtype, at least float32.
    """
    assert temperature > 0, temperature
    student, teacher = without_offset(student), without_offset(teacher)
    log_p = functional.log_softmax(teacher / temperature, dim=1)
    log_q = functional.log_softmax(student / temperature, dim=1)
    return divergence_by_gap((student - teacher) / temperature, log_p, log_q)


def divergence_by_gap(
    gap: Float[Tensor, "n c"], log_p: Float[Tensor, "n c"], log_q: Float[Tensor, "n c"]
) -> Float[Tensor, " n"]:
    r"""Return $\sum_c p_c (\log p_c - \log q_c)$ per sample, given also the difference of the logits of p and q.

    With d the gap, centered to mean 0 under p, the divergence is $\log(1 + E_p[e^d - 1 - d])$, a sum of nonnegative
    terms without the cancellation of a difference of logarithms. For wide gaps, the difference of logarithms is
    accurate enough and does not overflow. Classes that the target excludes (a logit of -inf) contribute 0.

    Args:
        gap: log q - log p, each row up to a constant.
        log_p: logarithm of the target distribution.
        log_q: logarithm of the other distribution.
    """
    p, excluded = log_p.exp(), log_p.isneginf()
    gap, log_p, log_q = (x.masked_fill(excluded, 0.0) for x in (gap, log_p, log_q))
    d = gap - gap.mean(dim=1, keepdim=True)
    d = d - (p * d).sum(dim=1, keepdim=True)
    far = (d.abs().amax(dim=1) > _PLAIN_ABOVE) | excluded.any(dim=1)
    close_form = torch.log1p((p * _exp_beyond_linear(d.masked_fill(far[:, None], 0.0))).sum(dim=1))
    plain_form = (p * (log_p - log_q)).sum(dim=1)
    return torch.where(far, plain_form, close_form)


def _exp_beyond_linear(x: Tensor) -> Tensor:
    """Return e^x - 1 - x to full relative precision, using its power series near 0."""
    series = torch.ones_like(x)
    for k in range(_SERIES_TERMS, 2, -1):
        series = 1.0 + x / k * series
    return torch.where(x.abs() < _SERIES_BELOW, 0.5 * x.square() * series, torch.expm1(x) - x)
