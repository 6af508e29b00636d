"""Squared distance of centered logits, the high-temperature limit of KD."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from kdschemes.core.precision import full_precision
from kdschemes.losses.rows import without_offset


@full_precision
def logit_mse(student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"]) -> Float[Tensor, ""]:
    r"""Return $\frac1N \sum_n \frac1{2C} \|z_n - v_n\|^2$ of logits centered per sample: the limit of `kd` for large T.

    Hinton, Vinyals, Dean 2015, section 2.1 (matching logits is a special case of distillation). The relative
    difference from `kd` decreases as 1/T. Mean over the batch; gradients flow to both.
    """
    gap = without_offset(student) - without_offset(teacher)
    gap = gap - gap.mean(dim=1, keepdim=True)
    return 0.5 * gap.square().mean()
