"""Decoupled KD: DKD (Zhao et al. 2022)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from kdschemes.core.precision import full_precision
from kdschemes.losses.response.divergence import divergence_by_gap
from kdschemes.losses.rows import without_offset


@full_precision
def dkd(
    student: Float[Tensor, "n c"],
    teacher: Float[Tensor, "n c"],
    labels: Int[Tensor, " n"],
    *,
    temperature: float,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Float[Tensor, ""]:
    r"""Return $T^2 \frac1N \sum_n (\alpha \, TCKD_n + \beta \, NCKD_n)$, with softmaxes at T and y the label.

    Zhao et al. 2022, "Decoupled Knowledge Distillation". $TCKD = KL(b^t \| b^s)$ of the two-class distributions
    $b = (p_y, 1 - p_y)$; $NCKD = KL(\hat p^t \| \hat p^s)$ of $\hat p_c = p_c / (1 - p_y)$ over the C - 1 other
    classes (0 for C = 2). `kd` is $T^2 \frac1N \sum_n (TCKD_n + (1 - p^t_y) NCKD_n)$. Mean over the batch; gradients
    flow to both.

    $b$ is the softmax of $(z_y / T, \log \sum_{c \ne y} e^{z_c / T})$; no probability is subtracted from 1 or passed to
    a logarithm, so value and gradients are finite and exact at any confidence. The difference of b's second logits is
    $E_{\hat p^t}[d] + NCKD$, d the difference of the logits: exact for close networks. The authors lower the label's
    logit by 1000 instead of leaving it out, which is the same up to rounding.
    """
    assert temperature > 0, temperature
    student_label, student_others = split_label(without_offset(student) / temperature, labels)
    teacher_label, teacher_others = split_label(without_offset(teacher) / temperature, labels)
    gap = student_others - teacher_others
    log_p = functional.log_softmax(teacher_others, dim=1)
    non_target = divergence_by_gap(gap, log_p, functional.log_softmax(student_others, dim=1))
    gap_of_others = (log_p.exp() * gap).sum(dim=1) + non_target
    target = divergence_by_gap(
        torch.stack([student_label - teacher_label, gap_of_others], dim=1),
        log_label_or_not(teacher_label, teacher_others),
        log_label_or_not(student_label, student_others),
    )
    return temperature**2 * (alpha * target + beta * non_target).mean()


def split_label(
    logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n c-1"]]:
    """Return each sample's logit for its label, and the logits of the other classes in order."""
    assert logits.shape[1] > 1, "there are no classes other than the label"
    order = torch.arange(logits.shape[1] - 1, device=logits.device)
    others = order + (order >= labels[:, None])
    return logits.gather(1, labels[:, None])[:, 0], logits.gather(1, others)


def log_label_or_not(label: Tensor, others: Tensor) -> Tensor:
    """Return log p_y and log (1 - p_y) as two columns, given the logits."""
    return functional.log_softmax(torch.stack([label, others.logsumexp(dim=1)], dim=1), dim=1)
