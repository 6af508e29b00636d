"""Logit standardization (Sun et al. 2024)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from kdschemes.core.precision import full_precision


@full_precision
def standardize(logits: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    r"""Return $Z(z) = (z - \bar z) / (\sigma(z) + 10^{-7})$ per sample, $\sigma$ the unbiased std over classes.

    Sun et al. 2024, "Logit Standardization in Knowledge Distillation". Equal logits give 0 with zero gradient (the
    formula's slope there is $10^7$). With two classes Z is always $\pm 1/\sqrt 2$: it depends only on the sign of the
    difference and teaches nothing. Logits are divided by their largest magnitude first, so nothing overflows.
    """
    assert logits.shape[1] > 1, "the std over one class is not defined"
    centered, std = center(logits)
    return torch.where(std != 0, centered / (std + 1e-7), 0.0)


def center(logits: Float[Tensor, "n c"]) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n 1"]]:
    """Return each sample's logits minus their mean, and their unbiased standard deviation, 0 if all are equal.

    Gradients flow to both; the standard deviation of equal logits has none. The input is at least float32.
    """
    centered = logits - logits.detach().amax(dim=1, keepdim=True)
    centered = centered - centered.mean(dim=1, keepdim=True)
    largest = centered.detach().abs().amax(dim=1, keepdim=True)
    varies = largest != 0
    scaled = centered / torch.where(varies, largest, 1.0)
    variance = scaled.square().sum(dim=1, keepdim=True) / (logits.shape[1] - 1)
    return centered, largest * torch.where(varies, variance, 1.0).sqrt()
