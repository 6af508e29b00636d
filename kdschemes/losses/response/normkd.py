"""Normalized logits: NormKD, a temperature for each sample (Chi et al. 2023)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from kdschemes.core.precision import full_precision
from kdschemes.losses.response.divergence import divergence
from kdschemes.losses.response.standardize import center


@full_precision
def normkd(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], *, temperature: float = 2.0
) -> Float[Tensor, ""]:
    r"""Return $\frac1N \sum_n T_n^2 \, KL(softmax(v_n / T_n) \| softmax(z_n / S_n))$.

    Chi et al. 2023, "NormKD: Normalized Logits for Knowledge Distillation". The temperatures of a sample are
    proportional to the unbiased standard deviations of its logits over classes: $T_n = T \sigma(v_n)$,
    $S_n = T \sigma(z_n)$. The scale of the student's logits does not matter, that of the teacher's enters by the
    factor $T_n^2$. Mean over the batch; gradients flow to both, through the standard deviations too, but not through
    $T_n^2$ (which makes no difference for a frozen teacher).

    Logits that are all equal have the uniform distribution (the formula divides by 0), without gradient.
    """
    (z, spread_of_student), (v, spread_of_teacher) = center(student), center(teacher)
    each = divergence(_divide(z, spread_of_student), _divide(v, spread_of_teacher), temperature=temperature)
    return (temperature**2 * spread_of_teacher.detach()[:, 0].square() * each).mean()


def _divide(centered: Tensor, spread: Tensor) -> Tensor:
    """Return rows divided by their spread, 0 where that is 0."""
    varies = spread != 0
    return torch.where(varies, centered / torch.where(varies, spread, 1.0), 0.0)
