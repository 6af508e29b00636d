"""Pearson correlation of feature maps: PKD (Cao et al. 2022)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kdschemes.config.losses import feature as config
from kdschemes.core.loss import Endpoint, Gather
from kdschemes.core.precision import full_precision
from kdschemes.core.types import DataSpec
from kdschemes.losses.stages import StageLoss, map_shapes, match_size, projection
from kdschemes.models.recombined import as_map


@full_precision
def pkd(
    student: Float[Tensor, "n c hs ws"], teacher: Float[Tensor, "n c ht wt"], *, eps: float = 1e-6
) -> Float[Tensor, ""]:
    r"""Return $\frac1{2NCHW} \sum (\hat s - \hat t)^2$ of maps standardized per channel over N, H and W.

    Cao et al. 2022, "PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient":
    $\hat x = (x - \bar x_c) / (\sigma_c + \epsilon)$ with the unbiased standard deviation, so the value is almost the
    mean over channels of 1 - the Pearson correlation. Maps of different size are first average-pooled to the smaller
    height and width. Constant channels (all channels, if there is one value) standardize to 0 with zero gradient.
    Gradients flow to both. Uses batch statistics: pass the whole batch.
    """
    assert eps > 0, eps
    student, teacher = match_size(student, teacher)
    return 0.5 * (_standardized(student, eps) - _standardized(teacher, eps)).square().mean()


def _standardized(features: Tensor, eps: float) -> Tensor:
    """Return the maps standardized per channel, one row per channel; no scale overflows or underflows."""
    rows = features.transpose(0, 1).flatten(1)
    centered = rows - rows.mean(dim=1, keepdim=True)
    centered = centered - centered.mean(dim=1, keepdim=True)
    largest = centered.detach().abs().amax(dim=1, keepdim=True)
    constant = rows.detach().amax(dim=1, keepdim=True) == rows.detach().amin(dim=1, keepdim=True)
    varies = ~constant & ~(largest <= torch.finfo(rows.dtype).tiny)
    scale = torch.where(varies, largest, 1.0)
    scaled = torch.where(varies, centered, 0.0) / scale
    variance = scaled.square().sum(dim=1, keepdim=True) / max(1, rows.shape[1] - 1)
    return scaled / (torch.where(varies, variance, 1.0).sqrt() + eps / scale)


class PKD(StageLoss[config.PKD]):
    """Sum over stage pairs of `pkd`, on maps gathered from all processes.

    If channels differ, the student's map first goes through a learned 1x1 convolution. Square tokens count as a map, a
    vector as a 1x1 map.
    """

    needs_global_batch = True

    def __init__(self, options: config.PKD, *, student: Endpoint, teacher: Endpoint, data_spec: DataSpec) -> None:
        super().__init__(options, student=student, teacher=teacher, data_spec=data_spec)
        shapes = [map_shapes("pkd", pair, student, teacher) for pair in self.pairs]
        self.projections = nn.ModuleList(projection(ours[0], theirs[0]) for ours, theirs in shapes)

    def pair_loss(self, number: int, student: Tensor, teacher: Tensor, gather: Gather) -> Float[Tensor, ""]:
        maps = match_size(self.projections[number](as_map(student)), as_map(teacher))
        return pkd(*map(gather, maps), eps=self.options.eps)
