"""Weighted soft labels: WSLD (Zhou et al. 2021)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from kdschemes.core.precision import full_precision
from kdschemes.losses.response.dkd import split_label
from kdschemes.losses.response.soft_ce import soft_cross_entropy
from kdschemes.losses.rows import without_offset


@full_precision
def wsld(
    student: Float[Tensor, "n c"],
    teacher: Float[Tensor, "n c"],
    labels: Int[Tensor, " n"],
    *,
    temperature: float = 2.0,
) -> Float[Tensor, ""]:
    r"""Return $-T^2 \frac1N \sum_n w_n \sum_c p_T(v_n)_c \log p_T(z_n)_c$, w below 1 where the student is ahead.

    Zhou et al. 2021, "Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff Perspective".
    $w_n = 1 - e^{-\ell^s_n / (\ell^t_n + 10^{-7})}$, with $\ell$ the cross-entropy with the label without temperature.
    The soft part is a cross-entropy, so the value at equality is not 0. Mean over the batch. The weights are detached
    (as in the reference code); the soft part propagates gradients to both. $\ell$ is computed as
    $-\log \sigma(z_y - \log \sum_{c \ne y} e^{z_c})$, so the ratio is accurate if both networks are confident.
    """
    with torch.no_grad():
        weight = -torch.expm1(-_label_loss(student, labels) / (_label_loss(teacher, labels) + 1e-7))
    return temperature**2 * (weight * soft_cross_entropy(student, teacher, temperature=temperature)).mean()


def _label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    label, others = split_label(without_offset(logits), labels)
    return -functional.logsigmoid(label - others.logsumexp(dim=1))
