"""Multi-label logits distillation: MLD (Yang et al. 2023)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kdschemes.core.precision import full_precision
from kdschemes.losses.response.divergence import divergence_by_gap


@full_precision
def mld(student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], *, temperature: float = 1.0) -> Float[Tensor, ""]:
    r"""Return $T^2 \frac1N \sum_n \sum_c KL(b(v_{nc} / T) \| b(z_{nc} / T))$ with $b(x) = (\sigma(x), 1 - \sigma(x))$.

    Yang et al. 2023, "Multi-Label Knowledge Distillation": each class is a binary problem of its own, for images with
    any number of labels. Sum over classes, mean over the batch; gradients flow to both. For large T it approaches
    $\frac1N \sum_n \frac18 \|z_n - v_n\|^2$: unlike softmaxes, sigmoids see an offset that all logits share.
    """
    assert temperature > 0, temperature
    gap = ((student - teacher) / temperature).flatten()
    log_p, log_q = (_log_yes_or_no(logits.flatten() / temperature) for logits in (teacher, student))
    each = divergence_by_gap(torch.stack([gap, torch.zeros_like(gap)], dim=1), log_p, log_q)
    return temperature**2 * each.view_as(student).sum(dim=1).mean()


def _log_yes_or_no(logits: Float[Tensor, " m"]) -> Float[Tensor, "m 2"]:
    return torch.stack([functional.logsigmoid(logits), functional.logsigmoid(-logits)], dim=1)
