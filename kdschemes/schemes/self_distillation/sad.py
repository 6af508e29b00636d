"""SAD: the attention map of each stage mimics the next deeper stage's."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from math import prod
from typing import Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kdschemes.config import Config
from kdschemes.config.schemes.self_distillation import SelfSAD
from kdschemes.core.distillation import Distillation
from kdschemes.core.nodes import Network
from kdschemes.core.precision import full_precision
from kdschemes.core.schedules import Schedule, constant
from kdschemes.core.terms import Supervise, Term
from kdschemes.core.types import Batch, DataSpec, Output
from kdschemes.errors import UserError, unknown
from kdschemes.losses.stages import to_map
from kdschemes.schemes.distill import probe
from kdschemes.schemes.networks import student_network
from kdschemes.schemes.self_distillation.stage_maps import stage_maps

Maps = Mapping[str, tuple[int, int, int]]

Reduce = Literal["mean", "sum"]


class SelfAttention(Term):
    """`self_attention` between two stages of one output; the deeper one is detached if configured."""

    def __init__(self, target: str, shallow: str, deep: str, options: SelfSAD) -> None:
        super().__init__(f"sad/{target}/{deep}->{shallow}", target, _from(options.start, options.weight))
        self.shallow, self.deep, self.options = shallow, deep, options

    def forward(self, outputs: Mapping[str, Output], batch: Batch) -> Tensor:
        features, options = outputs[self.target].features, self.options
        deep = features[self.deep].detach() if options.detach else features[self.deep]
        return self_attention(
            to_map(features[self.shallow]),
            to_map(deep),
            channel_reduction=options.channel_reduction,
            upsample=options.upsample,
            spatial_reduction=options.spatial_reduction,
        )


@full_precision
def self_attention(
    shallow: Float[Tensor, "n c h w"],
    deep: Float[Tensor, "n c2 h2 w2"],
    *,
    channel_reduction: Reduce = "mean",
    upsample: Literal["features", "attention"] = "features",
    spatial_reduction: Reduce = "mean",
) -> Float[Tensor, ""]:
    r"""Return the mean over samples and positions of $(\Psi(F) - \Psi(G))^2$, $\Psi$ a softmax over positions.

    Hou et al. 2019, "Learning Lightweight Lane Detection CNNs by Self Attention Distillation". $\Psi(F)$ is the
    softmax of $\frac1C \sum_c F_c^2$. The deeper map G is upsampled bilinearly to the size of F (`align_corners=False`)
    before squaring ('features'), or its attention before the softmax ('attention'). Gradients flow to both.

    Args:
        shallow: F.
        deep: G.
        channel_reduction: 'sum' omits the factor 1/C.
        upsample: 'features' or 'attention'.
        spatial_reduction: 'sum' sums the squared differences over a sample's positions.
    """
    size = (shallow.shape[2], shallow.shape[3])
    ours = _energy(shallow, channel_reduction)
    theirs = (
        _energy(_resized(deep, size), channel_reduction) if upsample == "features" else _energy(deep, channel_reduction)
    )
    theirs = _resized(theirs, size)
    gap = ours.flatten(1).softmax(dim=1) - theirs.flatten(1).softmax(dim=1)
    return gap.square().sum(dim=1).mean() if spatial_reduction == "sum" else gap.square().mean()


def sad(config: Config, data_spec: DataSpec) -> Distillation:
    """Return CE + weight * sum over successive stages m of the squared gap between the attention of m and m + 1.

    Tokens are reshaped into a square map. Pairs with a 1x1 map, whose attention is constant, are omitted with
    `stages=all` and rejected otherwise.

    Raises:
        UserError: a stage does not exist or has no map, or all maps are 1x1.
    """
    options = config.scheme
    assert isinstance(options, SelfSAD)
    student = Network("student", student_network(config, data_spec, "student"))
    maps = stage_maps("sad", probe([student], data_spec)["student"])
    pairs = _pairs(options.stages, maps, config.model.name)
    attention = [SelfAttention("student", shallow, deep, options) for shallow, deep in pairs]
    return Distillation({"student": student}, [Supervise("student", constant(1.0)), *attention], ["student"])


def _pairs(stages: str | list[str], maps: Maps, model: str) -> list[tuple[str, str]]:
    chosen = list(maps) if isinstance(stages, str) else [name for name in maps if name in stages]
    for name in stages if isinstance(stages, list) else ():
        if name not in maps:
            raise unknown(f"stage of {model}", name, maps)
    if len(chosen) < 2:
        raise UserError(f"sad needs two or more stages, not {len(chosen)} of {model}: choose more, or another model")
    pairs = list(pairwise(chosen))
    taught = [pair for pair in pairs if prod(map(min, *(maps[stage][1:] for stage in pair))) > 1]
    if not taught or (stages != "all" and len(taught) < len(pairs)):
        shallow, deep = next(pair for pair in pairs if pair not in taught)
        raise UserError(
            f"sad needs more than one position, but '{deep}' teaches '{shallow}' by a 1x1 map: choose other "
            "scheme.stages, larger images, or another model"
        )
    return taught


def _from(start: float, value: float) -> Schedule:
    return lambda progress: value if progress.fraction >= start else 0.0


def _energy(features: Tensor, channel_reduction: Reduce) -> Tensor:
    squares = features.square()
    return squares.mean(dim=1, keepdim=True) if channel_reduction == "mean" else squares.sum(dim=1, keepdim=True)


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if maps.shape[2:] == size:
        return maps
    return functional.interpolate(maps, size, mode="bilinear", align_corners=False)
