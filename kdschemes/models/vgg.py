"""VGG networks for small images (Simonyan & Zisserman 2015), with batch norm and one linear classifier."""

from __future__ import annotations

from torch import nn

from kdschemes.errors import UserError
from kdschemes.models.init import he_normal, small_classifier
from kdschemes.models.sequential import ActivatedStage, SequentialNetwork

WIDTHS = (64, 128, 256, 512, 512)

POOLED_FROM = 64


def vgg(num_classes: int, channels: int, image_size: int, *, convolutions: int) -> SequentialNetwork:
    """Build five stages of 3x3 convolutions (with bias), batch norm and ReLU, with 64, 128, 256, 512, 512 channels.

    As in the public CIFAR tables: 2x2 max pooling after the first three stages (also after the fourth for images of 64
    pixels or more), global average pooling after the last, one linear classifier. For 32x32 RGB images and 100
    classes: VGG-8 (one convolution per stage) 3,965,028 parameters and 96 M MACs, VGG-13 (two) 9,462,180 and 285 M.
    A stage's features are taken before its pooling. Convolutions use He normal initialization (fan-out) with zero bias,
    the classifier std 0.01. Raises `UserError` for images below 8x8.
    """
    if image_size < 8:
        raise UserError(f"vgg halves its images three times: it needs 8x8 or more, not {image_size}x{image_size}")
    parts: dict[str, nn.Module] = {}
    before = channels
    for number, width in enumerate(WIDTHS, start=1):
        layers: list[nn.Module] = []
        for _ in range(convolutions):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            before = width
        parts[f"layer{number}"] = ActivatedStage(*layers)
        if number <= 3 or (number == 4 and image_size >= POOLED_FROM):
            parts[f"pool{number}"] = nn.MaxPool2d(2)
    stage_names = tuple(f"layer{number}" for number in range(1, len(WIDTHS) + 1))
    network = SequentialNetwork(parts, stage_names, WIDTHS[-1], num_classes)
    he_normal(network)
    small_classifier(network.fc)
    return network
