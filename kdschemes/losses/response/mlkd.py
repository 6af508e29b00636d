"""Multi-level logit distillation: MLKD (Jin et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from kdschemes.core.precision import full_precision
from kdschemes.losses.logit_correlation import batch_correlation, class_correlation
from kdschemes.losses.response.divergence import divergence

Masks = Literal["share", "select", "none"]


@full_precision
def mlkd(
    student: Float[Tensor, "n c"],
    teacher: Float[Tensor, "n c"],
    *,
    temperatures: Sequence[float],
    instance: float,
    batch: float,
    classes: float,
    masks: Masks,
) -> Float[Tensor, ""]:
    r"""Return $\sum_T a \cdot KD_T + b \cdot BC_T + c \cdot CC_T$: `kd`, `batch_correlation`, `class_correlation`.

    Jin, Wang, Lin 2023, "Multi-Level Logit Distillation". The authors' code masks the levels of one view by the
    teacher's confidence, keeping samples with at most the median confidence (largest probability at temperature 1) and
    classes with at most the median mass in the batch. It applies the masks to values that are already means, so each
    level is just multiplied by the fraction of samples (instance and batch level) or classes (class level) that its
    mask keeps, about 1/2: `masks="share"`. `masks="select"` sums only over the kept samples and classes, `masks="none"`
    over all.

    a, b, c are `instance`, `batch`, `classes`. $KD_T$ includes the factor $T^2$, the correlations do not. Gradients
    flow to both. Depends on the whole batch: pass all of it.
    """
    assert temperatures, "there is no temperature to sum over"
    unsure, rare = confidence_masks(teacher)
    select = masks == "select"
    sample_share, class_share = (m.to(student.dtype).mean() if masks == "share" else 1.0 for m in (unsure, rare))
    total = student.new_zeros(())
    for t in temperatures:
        by_sample = divergence(student, teacher, temperature=t)
        soft = t**2 * (by_sample.masked_fill(~unsure, 0.0) if select else by_sample).mean()
        pairs = batch_correlation(student, teacher, temperature=t, keep=unsure if select else None)
        correlation = class_correlation(student, teacher, temperature=t, keep=rare if select else None)
        total = total + sample_share * (instance * soft + batch * pairs) + class_share * classes * correlation
    return total


def confidence_masks(teacher: Float[Tensor, "n c"]) -> tuple[Bool[Tensor, " n"], Bool[Tensor, " c"]]:
    """Return which samples and which classes of a batch are at or below the teacher's median confidence.

    A sample's confidence is its largest probability, a class's the sum of its probabilities over the batch, both at
    temperature 1. The median of an even number is the mean of the middle two.
    """
    p = functional.softmax(teacher.detach(), dim=1)
    sure, mass = p.amax(dim=1), p.sum(dim=0)
    return ~(sure > torch.quantile(sure, 0.5)), ~(mass > torch.quantile(mass, 0.5))
