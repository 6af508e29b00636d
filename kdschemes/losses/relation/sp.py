"""Similarity-preserving distillation: SP (Tung and Mori 2019)."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kdschemes.config.losses import relation as config
from kdschemes.core.loss import Gather
from kdschemes.core.precision import full_precision
from kdschemes.losses.rows import unit_rows
from kdschemes.losses.stages import StageLoss

_ORDERS = {"l2": 2, "l1": 1}


@full_precision
def similarity_preserving(
    student: Float[Tensor, " n *s"], teacher: Float[Tensor, " n *t"], *, row_norm: Literal["l2", "l1"] = "l2"
) -> Float[Tensor, ""]:
    r"""Return $\frac{1}{N^2} \|G^s - G^t\|_F^2$, with G the rows of $F F^\top$ divided by their norm.

    Tung & Mori 2019, "Similarity-Preserving Knowledge Distillation". F has one row per sample, its flattened features.
    `row_norm` is l2 in the paper, l1 in torchdistill. A row of G is 0 if all its sample's features are 0 (such a row
    has no gradient; that sample's entries in the other rows do). G is invariant to the scale of F, and row i to the
    scale of sample i, so both are first divided by their largest magnitude: no scale overflows or underflows. The
    references' lower bound of 1e-12 on norms is omitted. A batch of 1 gives 0. Gradients flow to both. Depends on pairs
    of samples: pass the whole batch.
    """
    if len(student) == 1:
        return 0.0 * (student.sum() + teacher.sum())
    return (_similarities(student, _ORDERS[row_norm]) - _similarities(teacher, _ORDERS[row_norm])).square().mean()


def _similarities(features: Tensor, order: int) -> Tensor:
    x = features.flatten(1)
    largest = x.detach().abs().amax(dim=1, keepdim=True)
    overall = largest.amax()
    by_sample = x / torch.where(largest != 0, largest, 1.0)
    together = x / torch.where(overall != 0, overall, 1.0)
    return unit_rows(by_sample @ together.mT, order=order)


class SP(StageLoss[config.SP]):
    """Sum over stage pairs of `similarity_preserving` of the whole features, gathered from all processes."""

    needs_global_batch = True

    def pair_loss(self, number: int, student: Tensor, teacher: Tensor, gather: Gather) -> Float[Tensor, ""]:
        ours, theirs = gather(student.flatten(1)), gather(teacher.flatten(1))
        return similarity_preserving(ours, theirs, row_norm=self.options.row_norm)
