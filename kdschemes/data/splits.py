"""Stratified splits that depend on nothing but labels and a seed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from kdschemes.data.views import Stream, uniform
from kdschemes.errors import UserError


def stratified_split(
    labels: Int[Tensor, " n"], fraction: float, *, seed: int, classes: Sequence[str]
) -> tuple[Int[Tensor, " kept"], Int[Tensor, " held"]]:
    """Hold out `fraction` of each class at random; return the positions kept and held out, ascending.

    Each class is rounded by itself (half up) and keeps at least one sample; a class too small to give one away gives
    none.

    Raises:
        UserError: a class has no sample, or `fraction` is above 0 and yet no class can give one.
    """
    order = torch.argsort(uniform(seed, 0, torch.arange(len(labels)), Stream.SPLIT), stable=True)
    ranked = labels[order]
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label, name in enumerate(classes):
        members = order[ranked == label]
        if len(members) == 0:
            raise UserError(f"class '{name}' has no training image: remove the class or add images of it")
        held[members[: min(math.floor(fraction * len(members) + 0.5), len(members) - 1)]] = True
    if fraction > 0 and not held.any():
        raise UserError(
            f"data.val_fraction={fraction} holds out no image at all, the classes are too small: "
            "give a larger share, or 0 for no validation split"
        )
    return (~held).nonzero().flatten(), held.nonzero().flatten()
