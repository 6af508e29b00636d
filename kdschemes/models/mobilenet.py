"""MobileNetV2 for small images (Sandler et al. 2018)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from kdschemes.errors import UserError
from kdschemes.models.init import he_normal, small_classifier
from kdschemes.models.sequential import ActivatedStage, SequentialNetwork

EXPANSION, WIDTH, LAST = 6, 0.5, 1280

STAGES = (
    ((1, 16, 1, 1), (EXPANSION, 24, 2, 1)),
    ((EXPANSION, 32, 3, 2),),
    ((EXPANSION, 64, 4, 2), (EXPANSION, 96, 3, 1)),
    ((EXPANSION, 160, 3, 2), (EXPANSION, 320, 1, 1)),
)
"""Per stage, groups of blocks: expansion, channels before the width multiplier, blocks, stride of the first block."""


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise convolution, linear 1x1 projection; plus the input if the shapes match."""

    def __init__(self, before: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = before * expansion
        self.conv = nn.Sequential(
            nn.Conv2d(before, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, inner, 3, stride, padding=1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.added = stride == 1 and before == width

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        """Return the projection, plus the input if the shapes match."""
        out: Tensor = self.conv(x)
        return x + out if self.added else out


def mobilenet_v2(num_classes: int, channels: int, image_size: int) -> SequentialNetwork:
    """Build MobileNetV2 with half width, as in the public CIFAR tables ("MobileNetV2", expansion 6, width 0.5).

    A stem with stride 2, four stages `layer1` to `layer4` that end in linear bottlenecks (strides 1, 2, 2, 2), and
    `head`, a 1x1 convolution to 1280 channels with batch norm and ReLU. 812,836 parameters and 6.5 M MACs for 32x32
    RGB images and 100 classes. Convolutions use He normal initialization (fan-out), the classifier std 0.01. Raises
    `UserError` for images below 8x8.
    """
    if image_size < 8:
        raise UserError(f"mobilenet_v2 needs images of 8x8 or more, not {image_size}x{image_size}")
    before = int(32 * WIDTH)
    parts: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(channels, before, 3, stride=2, padding=1, bias=False),
        "bn1": nn.BatchNorm2d(before),
        "act1": nn.ReLU(inplace=True),
    }
    for number, groups in enumerate(STAGES, start=1):
        blocks = []
        for expansion, wide, count, first_stride in groups:
            width = int(wide * WIDTH)
            for place in range(count):
                blocks.append(InvertedResidual(before, width, first_stride if place == 0 else 1, expansion))
                before = width
        parts[f"layer{number}"] = nn.Sequential(*blocks)
    parts["head"] = ActivatedStage(nn.Conv2d(before, LAST, 1, bias=False), nn.BatchNorm2d(LAST), nn.ReLU(inplace=True))
    network = SequentialNetwork(parts, ("layer1", "layer2", "layer3", "layer4", "head"), LAST, num_classes)
    he_normal(network)
    small_classifier(network.fc)
    return network
