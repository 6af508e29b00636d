"""Knowledge review: ReviewKD (Chen et al. 2021)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from kdschemes.config.losses import feature as config
from kdschemes.core.loss import Endpoint, Gather, embedding
from kdschemes.core.precision import full_precision
from kdschemes.core.types import Batch, DataSpec, Output
from kdschemes.losses.feature.hint import hint
from kdschemes.losses.stages import StageLoss, before_relu, check_two_pairs, map_shapes
from kdschemes.models.recombined import as_map

_LEVELS = (4, 2, 1)

Size = tuple[int, int]


@full_precision
def hcl(student: Float[Tensor, "n c h w"], teacher: Float[Tensor, "n c h w"]) -> Float[Tensor, ""]:
    r"""Return the hierarchical context loss, $\sum_l w_l \, \mathrm{MSE}(P_l f_s, P_l f_t) / \sum_l w_l$.

    Chen et al. 2021, "Distilling Knowledge via Knowledge Review". The first level is the map itself with weight 1; the
    next ones are average-pooled to 4x4, 2x2 and 1x1, each with half the weight of the previous one. Levels that are not
    smaller than the map in both dimensions are omitted (the references compare heights only, which is the same for
    square maps). MSE is a mean over all elements. Gradients flow to both.
    """
    value = hint(student, teacher)
    weight, total = 1.0, 1.0
    for level in _LEVELS:
        if level < min(student.shape[2:]):
            weight /= 2.0
            total += weight
            pooled = (functional.adaptive_avg_pool2d(f, level) for f in (student, teacher))
            value = value + weight * hint(*pooled)
    return value / total


class Fusion(nn.Module):
    """Attention-based fusion of a map with the fused map of the next deeper level.

    The map goes through a 1x1 convolution and batch norm; both maps are weighted per position by the sigmoid of a 1x1
    convolution of both, and added. The sum, after a 3x3 convolution and batch norm, is compared with the teacher's map;
    the sum itself is passed to the next shallower level. Sizes are matched by nearest-neighbor interpolation.

    Args:
        before: channels of the student's map.
        width: channels of the fused maps.
        after: channels of the teacher's map.
        deepest: whether there is no deeper level.
    """

    def __init__(self, before: int, width: int, after: int, *, deepest: bool = False) -> None:
        super().__init__()
        enter = nn.Conv2d(before, width, 1, bias=False)
        leave = nn.Conv2d(width, after, 3, padding=1, bias=False)
        for convolution in (enter, leave):
            nn.init.kaiming_uniform_(convolution.weight, a=1)
        self.enter = nn.Sequential(enter, nn.BatchNorm2d(width))
        self.leave = nn.Sequential(leave, nn.BatchNorm2d(after))
        self.attention = None if deepest else nn.Conv2d(2 * width, 2, 1)

    def forward(
        self, features: Float[Tensor, "n c h w"], deeper: Float[Tensor, "n width h2 w2"] | None, size: Size
    ) -> tuple[Float[Tensor, "n after h3 w3"], Float[Tensor, "n width h3 w3"]]:
        """Return the map to compare with the teacher's (of the given size), and the fused map."""
        fused: Tensor = self.enter(features)
        if self.attention is not None:
            assert deeper is not None, "only the deepest level has no deeper map"
            deeper = _resize(deeper, (fused.shape[2], fused.shape[3]))
            weights = self.attention(torch.cat([fused, deeper], dim=1)).sigmoid()
            fused = fused * weights[:, :1] + deeper * weights[:, 1:]
        fused = _resize(fused, size)
        return self.leave(fused), fused


class ReviewKD(StageLoss[config.ReviewKD]):
    """Sum over levels of `hcl` between the fused maps of the student and the teacher's maps.

    The levels are the stage pairs, shallow to deep, and, with `pooled`, the deepest pair averaged over positions. From
    the deepest level to the shallowest, a `Fusion` combines each map of the student with all deeper ones. Square tokens
    count as a map, a vector as a 1x1 map.
    """

    reads_preactivations = True

    def __init__(self, options: config.ReviewKD, *, student: Endpoint, teacher: Endpoint, data_spec: DataSpec) -> None:
        super().__init__(options, student=student, teacher=teacher, data_spec=data_spec)
        check_two_pairs("reviewkd", self.pairs, "set losses.feature.stages=all or list two pairs")
        shapes = [map_shapes("reviewkd", pair, student, teacher) for pair in self.pairs]
        channels = [(ours[0], theirs[0]) for ours, theirs in shapes]
        if options.pooled:
            channels.append(channels[-1])
        width = min(options.width, channels[-1][0])
        self.fusions = nn.ModuleList(
            Fusion(before, width, after, deepest=number == len(channels) - 1)
            for number, (before, after) in enumerate(channels)
        )

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        ours = self._levels(student, 0, before=self.options.preactivations == "both")
        theirs = self._levels(teacher, 1, before=self.options.preactivations != "neither")
        fused: Tensor | None = None
        values = []
        for fusion, s, t in zip(reversed(self.fusions), reversed(ours), reversed(theirs), strict=True):
            compared, fused = fusion(s, fused, (t.shape[2], t.shape[3]))
            values.append(hcl(compared, t))
        return torch.stack(values).sum()

    def _levels(self, output: Output, side: int, *, before: bool) -> list[Tensor]:
        stages = [pair[side] for pair in self.pairs]
        maps = [before_relu(output, stage) if before else as_map(output.features[stage]) for stage in stages]
        if self.options.pooled:
            maps.append(embedding(output.features[stages[-1]])[:, :, None, None])
        return maps


def _resize(features: Tensor, size: Size) -> Tensor:
    return features if features.shape[2:] == size else functional.interpolate(features, size, mode="nearest")
