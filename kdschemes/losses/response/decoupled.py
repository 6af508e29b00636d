"""The label's own class and the others apart: decoupled and normalised distillation."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from kdschemes.losses.precision import full_precision
from kdschemes.losses.response.divergence import divergence_by_gap
from kdschemes.losses.response.soft import soft_cross_entropy


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

    $b$ is the softmax of $(z_y / T, \log \sum_{c \ne y} e^{z_c / T})$ and no probability is ever subtracted from 1 or
    put into a logarithm, so value and gradients are finite and exact for outputs of any confidence. The second entry's
    gap between the two networks is $E_{\hat p^t}[d] + NCKD$, d the gap of the logits: exact where the two are close.
    The authors lower the label's logit by 1000 instead of leaving it out: the same to rounding.

    Args:
        student: logits z of at least 2 classes.
        teacher: logits v.
        labels: class indices y.
        temperature: T > 0.
        alpha: weight of the label's part.
        beta: weight of the other classes' part.
    """
    assert temperature > 0, temperature
    student_label, student_others = split_label(student / temperature, labels)
    teacher_label, teacher_others = split_label(teacher / temperature, labels)
    gap = student_others - teacher_others
    log_p = functional.log_softmax(teacher_others, dim=1)
    non_target = divergence_by_gap(gap, log_p, functional.log_softmax(student_others, dim=1))
    gap_of_others = (log_p.exp() * gap).sum(dim=1) + non_target
    target = divergence_by_gap(
        torch.stack([student_label - teacher_label, gap_of_others], dim=1),
        _log_label_or_not(teacher_label, teacher_others),
        _log_label_or_not(student_label, student_others),
    )
    return temperature**2 * (alpha * target + beta * non_target).mean()


@full_precision
def nkd(
    student: Float[Tensor, "n c"],
    teacher: Float[Tensor, "n c"],
    labels: Int[Tensor, " n"],
    *,
    temperature: float = 1.0,
    gamma: float = 1.5,
) -> Float[Tensor, ""]:
    r"""Return $\frac1N \sum_n (-p^t_y \log p^s_y - \gamma T^2 \sum_{c \ne y} \hat p^t_c \log \hat p^s_c)$.

    Yang et al. 2023, "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized
    Loss and Customized Soft Labels". p is the softmax over all classes without temperature, $\hat p$ the softmax at T
    over the C - 1 classes that are not the label. Both parts are cross-entropies, so the value at equality is the
    teacher's entropy and not 0. Mean over the batch. The student gets gradient from both parts; to the teacher, the
    weight $p^t_y$ passes none (as in the authors' code), the second part does.

    Args:
        student: logits of at least 2 classes.
        teacher: logits.
        labels: class indices y.
        temperature: T > 0, of the second part alone.
        gamma: weight of the second part.
    """
    assert temperature > 0, temperature
    share = functional.softmax(teacher, dim=1).gather(1, labels[:, None])[:, 0].detach()
    target = share * functional.cross_entropy(student, labels, reduction="none")
    others = [split_label(logits, labels)[1] for logits in (student, teacher)]
    non_target = soft_cross_entropy(*others, temperature=temperature)
    return (target + gamma * temperature**2 * non_target).mean()


def split_label(
    logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n c-1"]]:
    """Return each sample's logit of its label, and those of the other classes in their order."""
    assert logits.shape[1] > 1, "there are no classes beside the label's"
    order = torch.arange(logits.shape[1] - 1, device=logits.device)
    others = order + (order >= labels[:, None])
    return logits.gather(1, labels[:, None])[:, 0], logits.gather(1, others)


def _log_label_or_not(label: Tensor, others: Tensor) -> Tensor:
    """Return log p_y and log (1 - p_y) as two columns, given the logits."""
    return functional.log_softmax(torch.stack([label, others.logsumexp(dim=1)], dim=1), dim=1)
