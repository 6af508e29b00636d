"""Probabilistic knowledge transfer: PKT (Passalis and Tefas 2018)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from kdschemes.config.losses import relation as config
from kdschemes.core.loss import Gather, embedding
from kdschemes.core.precision import full_precision
from kdschemes.losses.stages import StageLoss

_LOGARITHM_BELOW = -0.5


@full_precision
def probabilistic_transfer(
    student: Float[Tensor, "n ds"], teacher: Float[Tensor, "n dt"], *, eps: float = 1e-7
) -> Float[Tensor, ""]:
    r"""Return the mean over all N^2 pairs of $P^t_{ij} \log \frac{P^t_{ij} + \epsilon}{P^s_{ij} + \epsilon}$.

    Passalis & Tefas 2018, "Learning Deep Representations with Probabilistic Knowledge Transfer". The rows of P are the
    rows of $K = (e e^\top + 1) / 2$ divided by their sum, including the diagonal; $e = x / (\|x\| + \epsilon)$. The
    mean over N^2 (one divergence per row, divided by N twice) and $\epsilon$ follow the authors' code. A zero embedding
    has similarity 1/2 to all others and no gradient. A batch of 1 gives 0 with zero gradient. Gradients flow to both.
    Depends on pairs of samples: pass the whole batch.

    $P^s - P^t$ is added to every term. Its rows sum to 0, so the value is unchanged, but the terms are then of second
    order in the difference and accurate if student and teacher are close.
    """
    assert eps > 0, eps
    if len(student) == 1:
        return 0.0 * (student.sum() + teacher.sum())
    q, p = _neighbors(student, eps), _neighbors(teacher, eps)
    gap = q - p
    relative = gap / (p + eps)
    log_ratio = torch.where(
        relative > _LOGARITHM_BELOW,
        torch.log1p(relative.clamp(min=_LOGARITHM_BELOW)),
        torch.log((q + eps) / (p + eps)),
    )
    return (gap - p * log_ratio).mean()


def _neighbors(x: Tensor, eps: float) -> Tensor:
    largest = x.detach().abs().amax(dim=1, keepdim=True)
    nonzero = largest != 0
    scale = torch.where(nonzero, largest, 1.0)
    scaled = x / scale
    length = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    unit = torch.where(nonzero, scaled / (torch.where(nonzero, length, 1.0) + eps / scale), 0.0)
    kernel = ((unit @ unit.mT + 1.0) / 2.0).clamp(min=0.0)
    return kernel / kernel.sum(dim=1, keepdim=True)


class PKT(StageLoss[config.PKT]):
    """Sum over stage pairs of `probabilistic_transfer` of the features averaged over positions."""

    needs_global_batch = True

    def pair_loss(self, number: int, student: Tensor, teacher: Tensor, gather: Gather) -> Float[Tensor, ""]:
        return probabilistic_transfer(gather(embedding(student)), gather(embedding(teacher)), eps=self.options.eps)
