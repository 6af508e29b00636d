"""Variational information distillation: how likely the teacher's features are, given the student's."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from kdschemes.losses.feature.maps import match_size
from kdschemes.losses.precision import full_precision


@full_precision
def vid(
    student: Float[Tensor, "n c hs ws"],
    teacher: Float[Tensor, "n c ht wt"],
    *,
    raw_variance: Float[Tensor, " c"],
    eps: float = 1e-5,
) -> Float[Tensor, ""]:
    r"""Return the mean over all elements of $\frac12 ((\mu - t)^2 / \sigma_c^2 + \log \sigma_c^2)$.

    Ahn et al. 2019, "Variational Information Distillation for Knowledge Transfer": the negative log-likelihood of the
    teacher's features under a Gaussian whose mean $\mu$ a regressor finds from the student's, and whose variance
    $\sigma_c^2 = \mathrm{softplus}(\rho_c) + \epsilon$ is trained, one a channel; the constant $\frac12 \log 2\pi$ is
    left out, as in RepDistiller, so the value may be negative. Maps of different size are average-pooled to the
    smaller height and the smaller width first. Gradients flow to both and to $\rho$.

    Args:
        student: the mean, of the teacher's channels.
        teacher: feature maps.
        raw_variance: rho, of any magnitude.
        eps: the least variance, > 0.
    """
    assert eps > 0, eps
    student, teacher = match_size(student, teacher)
    variance = torch.logaddexp(raw_variance, torch.zeros_like(raw_variance)) + eps
    gap = (student - teacher).square() / variance[:, None, None]
    return 0.5 * (gap.mean() + variance.log().mean())


def vid_raw_variance(variance: float, channels: int, *, eps: float = 1e-5) -> Float[Tensor, " c"]:
    """Return the rho of `vid` that gives this variance > eps in every channel."""
    assert variance > eps, f"variance {variance}, eps {eps}"
    excess = variance - eps
    return torch.full((channels,), excess + math.log(-math.expm1(-excess)))
