"""The shapes of the maps of a network's stages."""

from __future__ import annotations

from math import isqrt

from kdschemes.core.types import StageShapes
from kdschemes.errors import UserError
from kdschemes.losses.stages import map_shape


def stage_maps(method: str, features: StageShapes) -> dict[str, tuple[int, int, int]]:
    """Return each stage's map shape (C, H, W); tokens are reshaped into a square map.

    Raises:
        UserError: a stage has vectors, or a number of tokens that is not a square.
    """
    for stage, shape in features.items():
        if len(shape) == 1 or (len(shape) == 2 and isqrt(shape[0]) ** 2 != shape[0]):
            what = f"vectors of {shape[0]}" if len(shape) == 1 else f"{shape[0]} tokens, not a square number"
            raise UserError(f"{method} needs maps, but stage '{stage}' gives {what}: choose another model")
    return {stage: map_shape(method, stage, shape) for stage, shape in features.items()}
