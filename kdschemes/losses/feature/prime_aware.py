"""Features matched as far as their predicted uncertainty allows."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from kdschemes.losses.precision import full_precision


@full_precision
def pad(
    student: Float[Tensor, "n d"],
    teacher: Float[Tensor, "n d"],
    *,
    log_variance: Float[Tensor, "n d"],
    eps: float = 1e-6,
) -> Float[Tensor, ""]:
    r"""Return $\frac1{ND} \sum_{n,d} \frac{(t_{nd} - s_{nd})^2}{\epsilon + e^{v_{nd}}} + v_{nd}$.

    Zhang et al. 2020, "Prime-Aware Adaptive Distillation": a Gaussian's likelihood whose log-variance v is predicted,
    so that samples which cannot be matched weigh less. Mean over dimensions and the batch (torchdistill's convention;
    no factor 1/2). Gradients flow to all three. The weight is $e^{-\log(\epsilon + e^v)}$ in log space: no v, however
    large or small, makes it infinite or NaN.

    Args:
        student: embeddings, of the teacher's width.
        teacher: embeddings.
        log_variance: v, of the same shape.
        eps: added to the variance.
    """
    assert eps > 0, eps
    precision = torch.exp(-torch.logaddexp(log_variance, log_variance.new_tensor(math.log(eps))))
    return ((teacher - student).square() * precision + log_variance).mean()
