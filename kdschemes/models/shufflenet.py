"""ShuffleNetV1 (Zhang et al. 2018) and ShuffleNetV2 (Ma et al. 2018) for small images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from kdschemes.models.sequential import ActivatedStage, SequentialNetwork

STEM = 24

GROUPS = 3

V1_STAGES = ((240, 4), (480, 8), (960, 4))

V2_STAGES = ((116, 4), (232, 8), (464, 4))
"""Channels and number of blocks per stage; the first block halves the map."""

V2_LAST = 1024


def shuffle(x: Float[Tensor, "n c h w"], groups: int) -> Float[Tensor, "n c h w"]:
    """Shuffle channels across groups: channel i of group g becomes channel g of group i."""
    mixed: Tensor = rearrange(x, "n (g c) h w -> n (c g) h w", g=groups)
    return mixed


class GroupedBlock(nn.Module):
    """ShuffleNetV1's unit: grouped 1x1 convolution, shuffle, depthwise 3x3, grouped 1x1, and a shortcut.

    The input is added or, if the map is halved, average-pooled and concatenated. As in the public CIFAR code, a ReLU
    also follows the 3x3 convolution (the paper has none there).
    """

    def __init__(self, before: int, width: int, *, halve: bool) -> None:
        super().__init__()
        out = width - before if halve else width
        inner = out // 4
        self.groups = 1 if before == STEM else GROUPS
        self.conv1 = nn.Conv2d(before, inner, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, 2 if halve else 1, padding=1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, out, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.halve = halve

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        """Return the unit's output after its last ReLU."""
        return F.relu(self.before_activation(x), inplace=True)

    def before_activation(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        """Return the input of the last ReLU."""
        out = shuffle(F.relu(self.bn1(self.conv1(x)), inplace=True), self.groups)
        out = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(out)), inplace=True)))
        if self.halve:
            return torch.cat([out, F.avg_pool2d(x, 3, stride=2, padding=1)], dim=1)
        added: Tensor = out + x
        return added

    def last_norm(self) -> nn.BatchNorm2d:
        """Return the residual branch's last batch norm."""
        return self.bn3


def _pointwise(before: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True))


def _by_channel(width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, width, 3, stride, padding=1, groups=width, bias=False), nn.BatchNorm2d(width))


class SplitBlock(nn.Module):
    """ShuffleNetV2's unit: 1x1, depthwise 3x3 and 1x1 convolutions on half of the channels; then both are shuffled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(_pointwise(half, half), _by_channel(half, 1), _pointwise(half, half))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Return the shuffled halves."""
        kept, changed = x.chunk(2, dim=1)
        return shuffle(torch.cat([kept, self.branch(changed)], dim=1), 2)


class HalvingBlock(nn.Module):
    """ShuffleNetV2's downsampling unit: both branches take all channels and output half of the new ones."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        half = width // 2
        self.short = nn.Sequential(_by_channel(before, 2), _pointwise(before, half))
        self.long = nn.Sequential(_pointwise(before, half), _by_channel(half, 2), _pointwise(half, half))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        """Return the shuffled branches."""
        return shuffle(torch.cat([self.short(x), self.long(x)], dim=1), 2)


def _stem(channels: int) -> dict[str, nn.Module]:
    return {
        "conv1": nn.Conv2d(channels, STEM, 1, bias=False),
        "bn1": nn.BatchNorm2d(STEM),
        "act1": nn.ReLU(inplace=True),
    }


def shufflenet_v1(num_classes: int, channels: int, image_size: int) -> SequentialNetwork:
    """Build ShuffleNetV1 with 3 groups, as in the public CIFAR tables: a 1x1 stem, stages of 240, 480, 960 channels.

    949,258 parameters and 39 M MACs for 32x32 RGB images and 100 classes. PyTorch's default initialization.
    """
    parts = _stem(channels)
    before = STEM
    for number, (width, count) in enumerate(V1_STAGES, start=1):
        blocks = [GroupedBlock(before, width, halve=True)]
        blocks += [GroupedBlock(width, width, halve=False) for _ in range(count - 1)]
        parts[f"layer{number}"] = ActivatedStage(*blocks)
        before = width
    return SequentialNetwork(parts, ("layer1", "layer2", "layer3"), before, num_classes)


def shufflenet_v2(num_classes: int, channels: int, image_size: int) -> SequentialNetwork:
    """Build ShuffleNetV2 1x, as in the public CIFAR tables: a 1x1 stem, stages of 116, 232, 464 channels.

    The last stage `head` is a 1x1 convolution to 1024 channels with batch norm and ReLU. 1,355,528 parameters and 45 M
    MACs for 32x32 RGB images and 100 classes. PyTorch's default initialization.
    """
    parts = _stem(channels)
    before = STEM
    for number, (width, count) in enumerate(V2_STAGES, start=1):
        blocks: list[nn.Module] = [HalvingBlock(before, width)]
        blocks += [SplitBlock(width) for _ in range(count - 1)]
        parts[f"layer{number}"] = nn.Sequential(*blocks)
        before = width
    parts["head"] = ActivatedStage(
        nn.Conv2d(before, V2_LAST, 1, bias=False), nn.BatchNorm2d(V2_LAST), nn.ReLU(inplace=True)
    )
    return SequentialNetwork(parts, ("layer1", "layer2", "layer3", "head"), V2_LAST, num_classes)
