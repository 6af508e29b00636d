"""Fully connected networks, with dropout."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from kdschemes.models.sequential import SequentialNetwork


def mlp(
    num_classes: int,
    channels: int,
    image_size: int,
    *,
    widths: Sequence[int],
    dropout: float = 0.0,
    input_dropout: float = 0.0,
) -> SequentialNetwork:
    """Build hidden layers of ReLU units, each connected to all units or pixels before it, and a linear classifier.

    `mlp_1200_1200` has 2,395,210 parameters for 28x28 gray images and 10 classes. A stage's features are its units'
    outputs [N, width], before dropout. In training, each pixel is dropped with probability `input_dropout`, each hidden
    unit with `dropout`, and the rest scaled up (Srivastava et al. 2014). PyTorch's default initialization.
    """
    parts: dict[str, nn.Module] = {"pixels": nn.Sequential(nn.Flatten(), nn.Dropout(input_dropout))}
    for number, (before, width) in enumerate(pairwise((channels * image_size**2, *widths)), start=1):
        parts[f"hidden{number}"] = nn.Sequential(nn.Linear(before, width), nn.ReLU())
        parts[f"dropout{number}"] = nn.Dropout(dropout)
    stage_names = tuple(name for name in parts if name.startswith("hidden"))
    return SequentialNetwork(parts, stage_names, widths[-1], num_classes)
