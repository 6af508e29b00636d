"""Channels: where in the map each one is active, and how they relate to one another."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from kdschemes.losses.feature.maps import match_size
from kdschemes.losses.precision import full_precision
from kdschemes.losses.response.soft import kd


@full_precision
def cwd(
    student: Float[Tensor, "n c hs ws"], teacher: Float[Tensor, "n c ht wt"], *, temperature: float
) -> Float[Tensor, ""]:
    r"""Return $\frac{\tau^2}{NC} \sum_{n,c} KL(\phi(t_{nc}) \| \phi(s_{nc}))$, $\phi(x) = softmax_{hw}(x / \tau)$.

    Shu et al. 2021, "Channel-wise Knowledge Distillation for Dense Prediction": every channel of every sample is a
    distribution over positions. Sum over positions, mean over channels and the batch. Maps of different size are
    average-pooled to the smaller height and the smaller width first; equal channels are the caller's part. Gradients
    flow to both. It is `response.kd` of N C rows, and as precise.

    Args:
        student: feature maps.
        teacher: feature maps with as many channels; the size may differ.
        temperature: tau > 0.
    """
    student, teacher = match_size(student, teacher)
    return kd(student.flatten(2).flatten(0, 1), teacher.flatten(2).flatten(0, 1), temperature=temperature)


@full_precision
def pkd(
    student: Float[Tensor, "n c hs ws"], teacher: Float[Tensor, "n c ht wt"], *, eps: float = 1e-6
) -> Float[Tensor, ""]:
    r"""Return $\frac1{2NCHW} \sum (\hat s - \hat t)^2$ of maps standardised by channel over N, H and W.

    Cao et al. 2022, "PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient":
    $\hat x = (x - \bar x_c) / (\sigma_c + \epsilon)$ with the unbiased deviation, so that the value is nearly the mean
    over channels of 1 - the Pearson correlation. Maps of different size are average-pooled to the smaller height and
    the smaller width first. A channel that is constant (all of them, where there is one value) standardises to 0 with
    a gradient of 0. Gradients flow to both. The statistics are the batch's: give it the whole batch.

    Args:
        student: feature maps.
        teacher: feature maps with as many channels; the size may differ.
        eps: added to the deviation.
    """
    assert eps > 0, eps
    student, teacher = match_size(student, teacher)
    return 0.5 * (_standardised(student, eps) - _standardised(teacher, eps)).square().mean()


def _standardised(features: Tensor, eps: float) -> Tensor:
    """Return the maps standardised by channel, one row a channel; no scale of a channel overflows or vanishes."""
    rows = features.transpose(0, 1).flatten(1)
    centred = rows - rows.mean(dim=1, keepdim=True)
    centred = centred - centred.mean(dim=1, keepdim=True)
    largest = centred.detach().abs().amax(dim=1, keepdim=True)
    constant = rows.detach().amax(dim=1, keepdim=True) == rows.detach().amin(dim=1, keepdim=True)
    varies = ~constant & (largest > torch.finfo(rows.dtype).tiny)
    scale = torch.where(varies, largest, 1.0)
    scaled = torch.where(varies, centred, 0.0) / scale
    variance = scaled.square().sum(dim=1, keepdim=True) / max(1, rows.shape[1] - 1)
    return scaled / (torch.where(varies, variance, 1.0).sqrt() + eps / scale)


@full_precision
def ickd(student: Float[Tensor, "n c hs ws"], teacher: Float[Tensor, "n c ht wt"]) -> Float[Tensor, ""]:
    r"""Return $\frac1{NC} \sum_n \|G(s_n) - G(t_n)\|_F^2$, G the correlation of channels as in `channel_correlation`.

    Liu et al. 2021, "Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation" (ICKD-C), as
    in the authors' code: sum over the C x C entries over C, mean over the batch. Sizes may differ, for G has none.
    Equal channels are the caller's part. Gradients flow to both.

    Args:
        student: feature maps.
        teacher: feature maps with as many channels.
    """
    gap = channel_correlation(student) - channel_correlation(teacher)
    return gap.square().sum(dim=2).mean()


@full_precision
def channel_correlation(features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c c"]:
    r"""Return each sample's $F F^T$ with rows of unit length, F its channels by positions.

    A channel that is 0 everywhere has a row of 0. G does not depend on the scale of a sample's features, so they are
    divided by their largest magnitude first.
    """
    channels = features.flatten(2)
    largest = channels.detach().abs().amax(dim=(1, 2), keepdim=True)
    channels = channels / torch.where(largest > 0, largest, 1.0)
    return unit(channels @ channels.mT)


@full_precision
def unit(x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
    """Return the rows over their length, at any scale; a row of 0 stays 0 and has a gradient of 0."""
    largest = x.detach().abs().amax(dim=-1, keepdim=True)
    present = largest > torch.finfo(x.dtype).tiny
    scaled = torch.where(present, x, 1.0) / torch.where(present, largest, 1.0)
    return torch.where(present, scaled / scaled.norm(dim=-1, keepdim=True), 0.0)
