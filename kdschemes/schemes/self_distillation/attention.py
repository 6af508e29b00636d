"""Spatial attention as a distribution over positions, and the maps that a network's stages give."""

from __future__ import annotations

from math import isqrt
from typing import Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kdschemes.core.precision import full_precision
from kdschemes.core.types import StageShapes
from kdschemes.errors import UserError
from kdschemes.losses.stages import map_shape

Reduce = Literal["mean", "sum"]


@full_precision
def self_attention(
    shallow: Float[Tensor, "n c h w"],
    deep: Float[Tensor, "n c2 h2 w2"],
    *,
    channels: Reduce = "mean",
    enlarged: Literal["features", "attention"] = "features",
    positions: Reduce = "mean",
) -> Float[Tensor, ""]:
    r"""Return the mean over samples and positions of $(\Psi(F) - \Psi(G))^2$, $\Psi$ a softmax over positions.

    Hou et al. 2019, "Learning Lightweight Lane Detection CNNs by Self Attention Distillation". $\Psi(F)$ is the
    softmax of $\frac1C \sum_c F_c^2$. The deeper map G is enlarged to the size of F by bilinear interpolation (pixel
    centres aligned) before its squares are taken, or its attention is, before the softmax. Gradients flow to both.

    Args:
        shallow: F.
        deep: G.
        channels: 'sum' leaves out the factor 1/C.
        enlarged: 'features' or 'attention'.
        positions: 'sum' adds the squared differences of a sample's positions.
    """
    size = (shallow.shape[2], shallow.shape[3])
    ours = _energy(shallow, channels)
    theirs = _energy(_resized(deep, size), channels) if enlarged == "features" else _energy(deep, channels)
    theirs = _resized(theirs, size)
    gap = ours.flatten(1).softmax(dim=1) - theirs.flatten(1).softmax(dim=1)
    return gap.square().sum(dim=1).mean() if positions == "sum" else gap.square().mean()


def stage_maps(method: str, features: StageShapes) -> dict[str, tuple[int, int, int]]:
    """Return by stage the (C, H, W) of its map; tokens count as the square that they fill.

    Raises:
        UserError: a stage that gives vectors, or tokens that are no square.
    """
    for stage, shape in features.items():
        if len(shape) == 1 or (len(shape) == 2 and isqrt(shape[0]) ** 2 != shape[0]):
            what = f"vectors of {shape[0]}" if len(shape) == 1 else f"{shape[0]} tokens, not a square number"
            raise UserError(f"{method} needs maps, but stage '{stage}' gives {what}: choose another model")
    return {stage: map_shape(method, stage, shape) for stage, shape in features.items()}


def _energy(features: Tensor, channels: Reduce) -> Tensor:
    squares = features.square()
    return squares.mean(dim=1, keepdim=True) if channels == "mean" else squares.sum(dim=1, keepdim=True)


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if maps.shape[2:] == size:
        return maps
    return functional.interpolate(maps, size, mode="bilinear", align_corners=False)
