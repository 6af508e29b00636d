"""Logit standardization (Sun et al. 2024)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from kdschemes.core.precision import full_precision


@full_precision
def standardize(logits: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    r"""Return $Z(z) = (z - \bar z) / (\sigma(z) + 10^{-7})$ by sample, $\sigma$ the unbiased deviation over classes.

    Sun et al. 2024, "Logit Standardization in Knowledge Distillation". Equal logits give 0, and a gradient of 0 (the
    formula's own slope there is $10^7$). With two classes Z is always $\pm 1/\sqrt 2$: it depends on the sign of the
    gap alone and teaches nothing. Deviations are of logits divided by their largest magnitude: none overflows.

    Args:
        logits: of at least 2 classes.
    """
    assert logits.shape[1] > 1, "one class has no deviation"
    centered = logits - logits.detach().amax(dim=1, keepdim=True)
    centered = centered - centered.mean(dim=1, keepdim=True)
    largest = centered.detach().abs().amax(dim=1, keepdim=True)
    varies = largest > 0
    scaled = centered / torch.where(varies, largest, 1.0)
    variance = scaled.square().sum(dim=1, keepdim=True) / (logits.shape[1] - 1)
    std = largest * torch.where(varies, variance, 1.0).sqrt()
    return torch.where(varies, centered / (std + 1e-7), 0.0)
