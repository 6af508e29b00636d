"""The maps that a network's stages give."""

from __future__ import annotations

from math import isqrt

from kdschemes.core.types import StageShapes
from kdschemes.errors import UserError
from kdschemes.losses.stages import map_shape


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
