"""A plain convolutional network of four blocks: the small student."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from kdschemes.errors import UserError
from kdschemes.models.sequential import ActivatedStage, SequentialNetwork

WIDTHS = (32, 64, 128, 256)


def convnet(num_classes: int, channels: int, image_size: int, *, divisor: int = 1) -> SequentialNetwork:
    """Build four blocks of two 3x3 convolutions with 32, 64, 128, 256 channels, with 2x2 max pooling in between.

    The channels are divided by `divisor`. For 32x32 RGB images and 100 classes: convnet has 1,199,876 parameters and
    52.8 M MACs, convnet_quarter (divisor 4) 80,588 and 3.5 M. A stage's features are its block's output, before
    pooling. PyTorch's default initialization. Raises `UserError` for images below 8x8.
    """
    if image_size < 8:
        raise UserError(f"convnet halves its images three times: it needs 8x8 or more, not {image_size}x{image_size}")
    widths = [width // divisor for width in WIDTHS]
    parts: dict[str, nn.Module] = {}
    for number, (before, width) in enumerate(pairwise((channels, *widths)), start=1):
        parts[f"stage{number}"] = ConvBlock(before, width)
        if number < len(widths):
            parts[f"pool{number}"] = nn.MaxPool2d(2)
    stage_names = tuple(f"stage{number}" for number in range(1, len(widths) + 1))
    return SequentialNetwork(parts, stage_names, widths[-1], num_classes)


class ConvBlock(ActivatedStage):
    """Two times: 3x3 convolution with bias, batch norm, ReLU."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        for number, channels in ((1, before), (2, width)):
            self.add_module(f"conv{number}", nn.Conv2d(channels, width, 3, padding=1))
            self.add_module(f"bn{number}", nn.BatchNorm2d(width))
            self.add_module(f"act{number}", nn.ReLU(inplace=True))
