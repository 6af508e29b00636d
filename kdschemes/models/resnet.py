"""Residual networks for small images (He et al. 2015), with the tensor names of timm's and torchvision's ResNets."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kdschemes.models.init import he_normal
from kdschemes.models.sequential import ActivatedStage, SequentialNetwork


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: identity, or 1x1 convolution and batch norm if the shape changes."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or before != width:
            self.downsample = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        """Return relu(residual(x) + shortcut(x))."""
        return F.relu(self.before_activation(x), inplace=True)

    def before_activation(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        """Return residual(x) + shortcut(x)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        summed: Tensor = self.bn2(self.conv2(x)) + shortcut
        return summed

    def last_norm(self) -> nn.BatchNorm2d:
        """Return the residual branch's last batch norm."""
        return self.bn2


def _resnet(
    stem: int, widths: Sequence[int], depths: Sequence[int], num_classes: int, channels: int
) -> SequentialNetwork:
    parts: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(channels, stem, 3, padding=1, bias=False),
        "bn1": nn.BatchNorm2d(stem),
        "act1": nn.ReLU(inplace=True),
    }
    before = stem
    for number, (width, depth) in enumerate(zip(widths, depths, strict=True), start=1):
        stride = 1 if number == 1 else 2
        blocks = [BasicBlock(before, width, stride), *(BasicBlock(width, width, 1) for _ in range(depth - 1))]
        parts[f"layer{number}"] = ActivatedStage(*blocks)
        before = width
    stage_names = tuple(f"layer{number}" for number in range(1, len(widths) + 1))
    network = SequentialNetwork(parts, stage_names, widths[-1], num_classes)
    he_normal(network)
    return network


def cifar_resnet(num_classes: int, channels: int, image_size: int, *, depth: int) -> SequentialNetwork:
    """Build a ResNet with 6n + 2 layers: a 16-channel stem, three stages of n basic blocks with 16, 32, 64 channels.

    He et al. 2015, section 4.2, but with 1x1 convolutions as shortcuts between stages. A stage's features are taken
    after its last ReLU. Convolutions use He normal initialization (fan-out), the rest PyTorch's defaults.
    """
    assert depth % 6 == 2
    return _resnet(16, (16, 32, 64), (depth // 6,) * 3, num_classes, channels)


def cifar_resnet_x4(num_classes: int, channels: int, image_size: int, *, depth: int) -> SequentialNetwork:
    """Build a ResNet with 6n + 2 layers and stages four times as wide (64, 128, 256 channels), after a 32-channel stem.

    "8x4" and "32x4" in the public CIFAR tables: 1,233,540 parameters and 177 M MACs, 7,433,860 and 1,083 M, for 32x32
    RGB images and 100 classes. Otherwise the same as `cifar_resnet`.
    """
    assert depth % 6 == 2
    return _resnet(32, (64, 128, 256), (depth // 6,) * 3, num_classes, channels)


def resnet18_cifar(num_classes: int, channels: int, image_size: int) -> SequentialNetwork:
    """Build timm's `resnet18`, tensor for tensor, but with a 3x3 stem with stride 1 and no max pooling.

    11,220,132 parameters and 555.5 M MACs for 32x32 RGB images and 100 classes. Initialized as in timm: He normal
    (fan-out) for convolutions, zero for the scale of each residual branch's last batch norm.
    """
    network = _resnet(64, (64, 128, 256, 512), (2, 2, 2, 2), num_classes, channels)
    for module in network.modules():
        if isinstance(module, BasicBlock):
            nn.init.zeros_(module.bn2.weight)
    return network
