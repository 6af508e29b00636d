"""Wide residual networks for small images (Zagoruyko & Komodakis 2016)."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kdschemes.models.init import he_normal
from kdschemes.models.sequential import ActivatedStage, SequentialNetwork


class PreactivatedBlock(nn.Module):
    """Two times batch norm, ReLU and 3x3 convolution, plus a shortcut: identity, or a 1x1 convolution.

    If the number of channels changes, the shortcut takes the first ReLU's output.
    """

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(before, width, 1, stride, bias=False) if before != width else None

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        """Return residual(x) + shortcut(x)."""
        activated = F.relu(self.bn1(x))
        kept: Tensor = x if self.shortcut is None else self.shortcut(activated)
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(activated)), inplace=True))
        return kept + out


def wide_resnet(num_classes: int, channels: int, image_size: int, *, depth: int, widen: int) -> SequentialNetwork:
    """Build a WRN with 6n + 4 layers: a 16-channel stem, three stages of n blocks with 16, 32, 64 channels * `widen`.

    Parameters and MACs for 32x32 RGB images and 100 classes: WRN-16-2 703,284 and 101 M, WRN-40-1 569,780 and 83 M,
    WRN-40-2 2,255,156 and 328 M. The last stage's features are taken after the final batch norm and ReLU, like the
    classifier's input; the other stages' are the sums of their last block, before any ReLU (in the public code, the
    last stage's, too). Convolutions use He normal initialization (fan-out); the classifier's bias starts at 0.
    """
    assert depth % 6 == 4
    parts: dict[str, nn.Module] = {"conv1": nn.Conv2d(channels, 16, 3, padding=1, bias=False)}
    before = 16
    for number, width in enumerate((16 * widen, 32 * widen, 64 * widen), start=1):
        stride = 1 if number == 1 else 2
        blocks = [PreactivatedBlock(before, width, stride)]
        blocks += [PreactivatedBlock(width, width, 1) for _ in range((depth - 4) // 6 - 1)]
        last = number == 3
        parts[f"layer{number}"] = (
            ActivatedStage(*blocks, nn.BatchNorm2d(width), nn.ReLU(inplace=True)) if last else nn.Sequential(*blocks)
        )
        before = width
    network = SequentialNetwork(parts, ("layer1", "layer2", "layer3"), before, num_classes)
    he_normal(network)
    nn.init.zeros_(network.fc.bias)
    return network
