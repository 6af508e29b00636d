"""Soft targets: Hinton's loss, its limits, and cross-entropy on labels."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from kdschemes.losses.precision import full_precision

_SERIES_BELOW = 0.25
_SERIES_TERMS = 12
_PLAIN_ABOVE = 50.0


@full_precision
def kd(student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], *, temperature: float) -> Float[Tensor, ""]:
    r"""Return Hinton's distillation loss: $T^2 \frac1N \sum_n KL(p_T(v_n) \| p_T(z_n))$, $p_T(x) = softmax(x / T)$.

    Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network". z are the student's logits, v the
    teacher's; natural logarithm, sum over classes, mean over the batch. Gradients flow to both; the student's is
    $T (p_T(z) - p_T(v)) / N$.

    With $d = (z - v) / T$, centred so that its mean under $p_T(v)$ is 0, the divergence is
    $\log(1 + E_{p_T(v)}[e^d - 1 - d])$, a sum of terms that are not negative: unlike a difference of logarithms it
    loses no digits where the two outputs are close (a high temperature, small logits).

    Args:
        student: logits z.
        teacher: logits v.
        temperature: T > 0.
    """
    assert temperature > 0, temperature
    log_p = functional.log_softmax(teacher / temperature, dim=1)
    log_q = functional.log_softmax(student / temperature, dim=1)
    p = log_p.exp()
    d = (student - teacher) / temperature
    d = d - d.mean(dim=1, keepdim=True)
    d = d - (p * d).sum(dim=1, keepdim=True)
    far = d.abs().amax(dim=1) > _PLAIN_ABOVE
    close_form = torch.log1p((p * _exp_beyond_linear(d.masked_fill(far[:, None], 0.0))).sum(dim=1))
    plain_form = (p * (log_p - log_q)).sum(dim=1)
    return temperature**2 * torch.where(far, plain_form, close_form).mean()


def _exp_beyond_linear(x: Tensor) -> Tensor:
    """Return e^x - 1 - x to full relative precision, by its power series near 0."""
    series = torch.ones_like(x)
    for k in range(_SERIES_TERMS, 2, -1):
        series = 1.0 + x / k * series
    return torch.where(x.abs() < _SERIES_BELOW, 0.5 * x.square() * series, torch.expm1(x) - x)


@full_precision
def standardise(logits: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    r"""Return $Z(z) = (z - \bar z) / (\sigma(z) + 10^{-7})$ by sample, $\sigma$ the unbiased deviation over classes.

    Sun et al. 2024, "Logit Standardization in Knowledge Distillation". Equal logits give 0, and a gradient of 0. With
    two classes Z is always $\pm 1/\sqrt 2$: it depends on the sign of the gap alone and teaches nothing.

    Args:
        logits: of at least 2 classes.
    """
    assert logits.shape[1] > 1, "one class has no deviation"
    centred = logits - logits.mean(dim=1, keepdim=True)
    variance = centred.square().sum(dim=1, keepdim=True) / (logits.shape[1] - 1)
    positive = variance > 0
    deviation = torch.where(positive, torch.where(positive, variance, 1.0).sqrt(), 0.0)
    return centred / (deviation + 1e-7)


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
    partner_labels: Int[Tensor, " n"] | None = None,
    mix: Float[Tensor, " n"] | None = None,
) -> Float[Tensor, ""]:
    r"""Return $\frac1N \sum_n -\sum_c y_{nc} \log p_{nc}$, p the softmax of the logits.

    The target is $y = (1 - \epsilon) \cdot onehot + \epsilon / C$ (label smoothing of Szegedy et al. 2016, the label's
    own class included). With mixup (Zhang et al. 2018) the loss is mix * loss(labels) + (1 - mix) * loss(partners).

    Args:
        logits: of the network that is trained.
        labels: class indices.
        label_smoothing: epsilon, from 0 to 1.
        partner_labels: labels of the samples mixed in; given together with `mix`.
        mix: each sample's share of its own label, from 0 to 1.
    """
    assert (partner_labels is None) == (mix is None), "mixup needs both partner_labels and mix"
    loss = functional.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="none")
    if partner_labels is not None and mix is not None:
        partner = functional.cross_entropy(logits, partner_labels, label_smoothing=label_smoothing, reduction="none")
        loss = mix * loss + (1.0 - mix) * partner
    return loss.mean()
