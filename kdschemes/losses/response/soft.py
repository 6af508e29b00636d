"""Soft targets: Hinton's loss, its limits, and cross-entropy on labels."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from kdschemes.losses.precision import full_precision
from kdschemes.losses.response.divergence import divergence


@full_precision
def kd(
    student: Float[Tensor, "n c"],
    teacher: Float[Tensor, "n c"],
    *,
    temperature: float,
    scale: bool = True,
    reduction: Literal["batchmean", "mean"] = "batchmean",
) -> Float[Tensor, ""]:
    r"""Return Hinton's distillation loss: $T^2 \frac1N \sum_n KL(p_T(v_n) \| p_T(z_n))$, $p_T(x) = softmax(x / T)$.

    Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network". z are the student's logits, v the
    teacher's; natural logarithm, sum over classes, mean over the batch. Gradients flow to both; the student's is
    $T (p_T(z) - p_T(v)) / N$. No digits are lost where the two outputs are close (a high temperature, small logits).

    Args:
        student: logits z.
        teacher: logits v.
        temperature: T > 0.
        scale: multiply by $T^2$, so that the gradient does not fall with T.
        reduction: 'batchmean' sums over classes; 'mean' divides that by C as well, as torch's KLDivLoss does unless
            told otherwise, and with it several public codes.
    """
    by_sample = divergence(student, teacher, temperature=temperature)
    value = by_sample.mean() if reduction == "batchmean" else by_sample.mean() / student.shape[1]
    return temperature**2 * value if scale else value


@full_precision
def soft_ce(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], *, temperature: float, scale: bool = True
) -> Float[Tensor, ""]:
    r"""Return the cross-entropy with soft targets: $-T^2 \frac1N \sum_n \sum_c p_T(v_n)_c \log p_T(z_n)_c$.

    Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network": `kd` plus the entropy of the teacher's
    output, so at equality it is that entropy and not 0. The student's gradient is that of `kd`; both sides get one.
    Mean over the batch.

    Args:
        student: logits z.
        teacher: logits v.
        temperature: T > 0.
        scale: multiply by $T^2$.
    """
    value = soft_cross_entropy(student, teacher, temperature=temperature).mean()
    return temperature**2 * value if scale else value


def soft_cross_entropy(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], *, temperature: float
) -> Float[Tensor, " n"]:
    r"""Return $-\sum_c p_T(v_n)_c \log p_T(z_n)_c$ of every sample; the tensors are of float32 at least."""
    assert temperature > 0, temperature
    p = functional.softmax(teacher / temperature, dim=1)
    return -(p * functional.log_softmax(student / temperature, dim=1)).sum(dim=1)


@full_precision
def standardise(logits: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    r"""Return $Z(z) = (z - \bar z) / (\sigma(z) + 10^{-7})$ by sample, $\sigma$ the unbiased deviation over classes.

    Sun et al. 2024, "Logit Standardization in Knowledge Distillation". Equal logits give 0, and a gradient of 0 (the
    formula's own slope there is $10^7$). With two classes Z is always $\pm 1/\sqrt 2$: it depends on the sign of the
    gap alone and teaches nothing. Deviations are of logits divided by their largest magnitude: none overflows.

    Args:
        logits: of at least 2 classes.
    """
    assert logits.shape[1] > 1, "one class has no deviation"
    centred = logits - logits.detach().amax(dim=1, keepdim=True)
    centred = centred - centred.mean(dim=1, keepdim=True)
    largest = centred.detach().abs().amax(dim=1, keepdim=True)
    varies = largest > 0
    scaled = centred / torch.where(varies, largest, 1.0)
    variance = scaled.square().sum(dim=1, keepdim=True) / (logits.shape[1] - 1)
    deviation = largest * torch.where(varies, variance, 1.0).sqrt()
    return torch.where(varies, centred / (deviation + 1e-7), 0.0)


@full_precision
def logit_mse(student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"]) -> Float[Tensor, ""]:
    r"""Return $\frac1N \sum_n \frac1{2C} \|z_n - v_n\|^2$ of logits centred per sample: what `kd` tends to as T grows.

    Hinton, Vinyals, Dean 2015, section 2.1 (matching logits is a special case of distillation). The relative
    difference from `kd` falls as 1/T. Mean over the batch; gradients flow to both.

    Args:
        student: logits z.
        teacher: logits v.
    """
    gap = student - teacher
    gap = gap - gap.mean(dim=1, keepdim=True)
    return 0.5 * gap.square().mean()


@full_precision
def cross_entropy(
    logits: Float[Tensor, "n c"],
    labels: Int[Tensor, " n"],
    *,
    label_smoothing: float = 0.0,
    label_smoothing_over: Literal["all", "others"] = "all",
    partner_labels: Int[Tensor, " n"] | None = None,
    mix: Float[Tensor, " n"] | None = None,
) -> Float[Tensor, ""]:
    r"""Return $\frac1N \sum_n -\sum_c y_{nc} \log p_{nc}$, p the softmax of the logits.

    The target is $y = (1 - \epsilon) \cdot onehot + \epsilon / C$ (label smoothing of Szegedy et al. 2016, the label's
    own class included), or with `label_smoothing_over='others'` $1 - \epsilon$ on the label and $\epsilon / (C - 1)$ on
    each other class (Yuan et al. 2020): the same family, $\epsilon$ greater by C / (C - 1). With mixup (Zhang et al.
    2018) the loss is mix * loss(labels) + (1 - mix) * loss(partners).

    Args:
        logits: of the network that is trained.
        labels: class indices.
        label_smoothing: epsilon, from 0 to 1.
        label_smoothing_over: the classes that share epsilon.
        partner_labels: labels of the samples mixed in; given together with `mix`.
        mix: each sample's share of its own label, from 0 to 1.
    """
    assert (partner_labels is None) == (mix is None), "mixup needs both partner_labels and mix"
    spread = label_smoothing
    if spread and label_smoothing_over == "others":
        assert logits.shape[1] > 1, "there are no other classes"
        spread *= logits.shape[1] / (logits.shape[1] - 1)
    loss = _smoothed(logits, labels, spread)
    if partner_labels is not None and mix is not None:
        loss = mix * loss + (1.0 - mix) * _smoothed(logits, partner_labels, spread)
    return loss.mean()


def _smoothed(logits: Tensor, labels: Tensor, spread: float) -> Tensor:
    """Return the loss by sample with `spread` shared by all classes; it may exceed 1, which torch's own refuses."""
    if spread <= 1.0:
        return functional.cross_entropy(logits, labels, label_smoothing=spread, reduction="none")
    hard = functional.cross_entropy(logits, labels, reduction="none")
    even = -functional.log_softmax(logits, dim=1).mean(dim=1)
    return (1.0 - spread) * hard + spread * even
