"""Inter-channel correlation: ICKD (Liu et al. 2021)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kdschemes.config.losses import feature as config
from kdschemes.core.loss import Endpoint, Gather
from kdschemes.core.precision import full_precision
from kdschemes.core.types import DataSpec
from kdschemes.losses.rows import unit
from kdschemes.losses.stages import StageLoss, map_shapes
from kdschemes.models.recombined import as_map


@full_precision
def ickd(student: Float[Tensor, "n c hs ws"], teacher: Float[Tensor, "n c ht wt"]) -> Float[Tensor, ""]:
    r"""Return $\frac1{NC} \sum_n \|G(s_n) - G(t_n)\|_F^2$, with G from `channel_correlation`.

    Liu et al. 2021, "Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation" (ICKD-C), as
    in the authors' code: sum over the C x C entries, divided by C, mean over the batch. Gradients flow to both.
    """
    gap = channel_correlation(student) - channel_correlation(teacher)
    return gap.square().sum(dim=2).mean()


@full_precision
def channel_correlation(features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c c"]:
    r"""Return each sample's $F F^T$ with L2-normalized rows, F its channels by positions.

    A zero channel has a zero row. G is invariant to the scale of a sample's features, so they are first divided by
    their largest magnitude.
    """
    channels = features.flatten(2)
    largest = channels.detach().abs().amax(dim=(1, 2), keepdim=True)
    channels = channels / torch.where(largest != 0, largest, 1.0)
    return unit(channels @ channels.mT)


class ICKD(StageLoss[config.ICKD]):
    """Sum over stage pairs of `ickd`, after a learned 1x1 convolution and batch norm on the student's map.

    Square tokens count as a map, a vector as a 1x1 map.
    """

    def __init__(self, options: config.ICKD, *, student: Endpoint, teacher: Endpoint, data_spec: DataSpec) -> None:
        super().__init__(options, student=student, teacher=teacher, data_spec=data_spec)
        self.projections = nn.ModuleList()
        for pair in self.pairs:
            ours, theirs = map_shapes("ickd", pair, student, teacher)
            convolution = nn.Conv2d(ours[0], theirs[0], 1, bias=False)
            self.projections.append(nn.Sequential(convolution, nn.BatchNorm2d(theirs[0])))

    def pair_loss(self, number: int, student: Tensor, teacher: Tensor, gather: Gather) -> Float[Tensor, ""]:
        return ickd(self.projections[number](as_map(student)), as_map(teacher))
