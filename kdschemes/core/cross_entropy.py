"""Cross-entropy with labels, with or without label smoothing, and that of several labels per image."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor
from torch.nn import functional

from kdschemes.core.precision import full_precision


@full_precision
def cross_entropy(
    logits: Float[Tensor, "n c"],
    labels: Int[Tensor, " n"],
    *,
    label_smoothing: float = 0.0,
    label_smoothing_over: Literal["all", "others"] = "all",
    partner_labels: Int[Tensor, " n"] | None = None,
    mix: Float[Tensor, " n"] | None = None,
    class_weights: Float[Tensor, " c"] | None = None,
) -> Float[Tensor, ""]:
    r"""Return $\frac1N \sum_n -\sum_c y_{nc} \log p_{nc}$, p the softmax of the logits.

    The target is $y = (1 - \epsilon) \cdot onehot + \epsilon / C$ (label smoothing over all classes, Szegedy et al.
    2016), or with `label_smoothing_over='others'` $1 - \epsilon$ on the label and $\epsilon / (C - 1)$ on each other
    class (Yuan et al. 2020), which equals the former with $\epsilon$ scaled by C / (C - 1). With mixup (Zhang et al.
    2018), the loss is mix * loss(labels) + (1 - mix) * loss(partners). With class weights w, each label's loss is
    multiplied by that of the label, w_y, and the mean is still over samples: unlike torch's `weight`, which divides by
    the sum of the batch's weights, it does not depend on how samples are split into batches and processes. Samples
    without a label have the weight 0, in a mean that is over all.

    Args:
        logits: of the network being trained.
        labels: class indices; -1: no label.
        label_smoothing: epsilon, from 0 to 1.
        label_smoothing_over: the classes that share epsilon.
        partner_labels: labels of the samples mixed in; given together with `mix`.
        mix: weight of each sample's own label, from 0 to 1.
        class_weights: weight of each class.
    """
    assert (partner_labels is None) == (mix is None), "mixup needs both partner_labels and mix"
    spread = label_smoothing
    if spread and label_smoothing_over == "others":
        assert logits.shape[1] > 1, "there are no other classes"
        spread *= logits.shape[1] / (logits.shape[1] - 1)

    def of(given: Tensor) -> Tensor:
        loss = _smoothed(logits, given, spread)
        return loss if class_weights is None else class_weights.to(loss.dtype)[given] * loss

    loss = of(labels)
    if partner_labels is not None and mix is not None:
        loss = mix * loss + (1.0 - mix) * of(partner_labels)
    return loss.mean()


@full_precision
def binary_cross_entropy(
    logits: Float[Tensor, "n c"],
    labels: Num[Tensor, "n c"],
    *,
    partner_labels: Num[Tensor, "n c"] | None = None,
    mix: Float[Tensor, " n"] | None = None,
) -> Float[Tensor, ""]:
    r"""Return $\frac1N \sum_n \sum_c -y_{nc} \log \sigma(z_{nc}) - (1 - y_{nc}) \log (1 - \sigma(z_{nc}))$.

    The negative log-likelihood of a row of labels, each 0 or 1 on its own; the sum over classes is not a mean as in
    torch. With mixup, y is mix * labels + (1 - mix) * partner_labels.
    """
    assert (partner_labels is None) == (mix is None), "mixup needs both partner_labels and mix"
    targets = labels.to(logits.dtype)
    if partner_labels is not None and mix is not None:
        targets = partner_labels.to(logits.dtype).lerp(targets, mix.to(logits.dtype)[:, None])
    each = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return each.sum(dim=1).mean()


def balanced_weights(labels: Int[Tensor, " n"], num_classes: int) -> Float[Tensor, " {num_classes}"]:
    """Return n / (K n_c) for each class c with n_c > 0 of the n labels, K the number of such classes, and 0 for others.

    Their mean over the labels is 1.
    """
    counts = torch.bincount(labels, minlength=num_classes).float()
    present = counts > 0
    return torch.where(present, len(labels) / (present.sum() * counts.clamp(min=1)), 0.0)


def _smoothed(logits: Tensor, labels: Tensor, spread: float) -> Tensor:
    """Return the per-sample loss with `spread` shared by all classes; unlike torch's, it may exceed 1."""
    if spread <= 1.0:
        return functional.cross_entropy(logits, labels, label_smoothing=spread, reduction="none", ignore_index=-1)
    hard = functional.cross_entropy(logits, labels, reduction="none", ignore_index=-1)
    even = -functional.log_softmax(logits, dim=1).mean(dim=1).masked_fill(labels < 0, 0.0)
    return (1.0 - spread) * hard + spread * even
