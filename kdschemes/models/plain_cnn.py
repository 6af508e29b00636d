"""Convolutions whose last maps are flattened, not averaged: LeNet-5, and the plain networks of teacher assistants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from torch import nn

from kdschemes.errors import UserError
from kdschemes.models.sequential import ActivatedStage, SequentialNetwork

PLAIN: dict[int, tuple[tuple[tuple[int, ...], ...], tuple[int, ...]]] = {
    2: (((32,), (32,)), ()),
    4: (((32, 32), (64, 64)), ()),
    6: (((32, 32), (64, 64), (128, 128)), ()),
    8: (((32, 32), (64, 64), (128, 128), (256, 256)), (64,)),
    10: (((32, 32), (64, 64), (128, 128), (256, 256, 256, 256)), (512,)),
}
"""By the number of convolutions: the channels of each stage's, and the units of hidden layers."""

UNPOOLED = 6
"""The network whose last maps are not pooled: that of 6 convolutions."""


def lenet5(num_classes: int, channels: int, image_size: int, *, divisor: int = 1) -> SequentialNetwork:
    """Build LeNet-5 with ReLUs and max pooling: 5x5 convolutions with 6 and 16 filters, layers of 120 and 84 units.

    The first convolution pads images below 32x32 by two pixels, because LeCun et al. (1998) center 28x28 digits in
    32x32. The numbers of filters are divided by `divisor`, those of units are not: for 28x28 gray images and 10
    classes, lenet5 has 61,706 parameters and 417 k MACs, lenet5_half (divisor 2; Nayak et al. 2019) 35,820 and 154 k. A
    stage's features are those of a convolution, before pooling. PyTorch's default initialization. Raises `UserError`
    for images below 12x12.
    """
    padding = 2 if image_size < 32 else 0
    side = ((image_size + 2 * padding - 4) // 2 - 4) // 2
    if side < 1:
        raise UserError(f"lenet5 needs 12x12 images or more, not {image_size}x{image_size}")
    parts: dict[str, nn.Module] = {}
    before = channels
    for number, (width, pad) in enumerate(((6 // divisor, padding), (16 // divisor, 0)), start=1):
        parts[f"conv{number}"] = nn.Sequential(nn.Conv2d(before, width, 5, padding=pad), nn.ReLU())
        parts[f"pool{number}"] = nn.MaxPool2d(2)
        before = width
    return FlattenedNetwork(parts, before * side**2, (120, 84), num_classes)


def plain_cnn(num_classes: int, channels: int, image_size: int, *, convolutions: int) -> SequentialNetwork:
    """Build a plain network of Mirzadeh et al. (2020): 3x3 convolutions (with bias), batch norm, ReLU, max pooling.

    Channels as theirs for CIFAR-100, also for other data: 32 and 32 (2 convolutions); two of 32 and two of 64 (4), two
    more of 128 (6), and of 256, with 64 hidden units (8); 10 convolutions have four of 256 and 512 hidden units. 2x2
    max pooling after each stage, but for the last of 6 convolutions. For 32x32 RGB images and 100 classes: plain2 has
    215,172 parameters (3.4 M MACs), plain4 475,652 (25 M), plain6 1,107,204 (39 M), plain8 1,246,276 (53 M), plain10
    2,931,460 (72 M). A stage's features are taken before its pooling. PyTorch's default initialization. Raises
    `UserError` for images that are too small.
    """
    stages, hidden = PLAIN[convolutions]
    pooled = len(stages) - (convolutions == UNPOOLED)
    side = image_size >> pooled
    if side < 1:
        raise UserError(
            f"plain{convolutions} halves its images {pooled} times: it needs {2**pooled}x{2**pooled} or more, "
            f"not {image_size}x{image_size}"
        )
    parts: dict[str, nn.Module] = {}
    before = channels
    for number, widths in enumerate(stages, start=1):
        layers: list[nn.Module] = []
        for width in widths:
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            before = width
        parts[f"stage{number}"] = ActivatedStage(*layers)
        if number <= pooled:
            parts[f"pool{number}"] = nn.MaxPool2d(2)
    return FlattenedNetwork(parts, before * side**2, hidden, num_classes)


class FlattenedNetwork(SequentialNetwork):
    """Convolutional parts, whose last maps of `size` numbers are flattened, `hidden` layers of ReLUs, then `fc`."""

    def __init__(self, parts: Mapping[str, nn.Module], size: int, hidden: Sequence[int], num_classes: int) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        for before, width in pairwise((size, *hidden)):
            layers += [nn.Linear(before, width), nn.ReLU()]
        stage_names = tuple(name for name in parts if not name.startswith("pool"))
        super().__init__({**parts, "flat": nn.Sequential(*layers)}, stage_names, (size, *hidden)[-1], num_classes)

    def linear_classifier(self) -> None:
        """Return None: `fc` sees more of the last stage than its features' averages over positions."""
