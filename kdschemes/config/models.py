"""The table of kdschemes' own networks. Nothing here imports torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

MODELS: dict[str, tuple[str, Mapping[str, int]]] = {
    "convnet": ("convnet", {}),
    "resnet18_cifar": ("resnet18_cifar", {}),
    "resnet20": ("cifar_resnet", {"depth": 20}),
    "resnet32": ("cifar_resnet", {"depth": 32}),
    "resnet44": ("cifar_resnet", {"depth": 44}),
    "resnet56": ("cifar_resnet", {"depth": 56}),
    "resnet110": ("cifar_resnet", {"depth": 110}),
    "resnet8x4": ("cifar_resnet_x4", {"depth": 8}),
    "resnet32x4": ("cifar_resnet_x4", {"depth": 32}),
    "wrn_16_1": ("wide_resnet", {"depth": 16, "widen": 1}),
    "wrn_16_2": ("wide_resnet", {"depth": 16, "widen": 2}),
    "wrn_40_1": ("wide_resnet", {"depth": 40, "widen": 1}),
    "wrn_40_2": ("wide_resnet", {"depth": 40, "widen": 2}),
    "vgg8": ("vgg", {"convolutions": 1}),
    "vgg13": ("vgg", {"convolutions": 2}),
    "mobilenet_v2": ("mobilenet_v2", {}),
    "shufflenet_v1": ("shufflenet_v1", {}),
    "shufflenet_v2": ("shufflenet_v2", {}),
    "convnet_quarter": ("convnet", {"divisor": 4}),
    "lenet5": ("lenet5", {}),
    "lenet5_half": ("lenet5", {"divisor": 2}),
    "plain2": ("plain_cnn", {"convolutions": 2}),
    "plain4": ("plain_cnn", {"convolutions": 4}),
    "plain6": ("plain_cnn", {"convolutions": 6}),
    "plain8": ("plain_cnn", {"convolutions": 8}),
    "plain10": ("plain_cnn", {"convolutions": 10}),
}
"""Each network by name: the function of `kdschemes.models` that builds it, and its arguments."""

REGISTERED: dict[str, Callable[..., Any]] = {}
"""The networks that `register_model` adds: what builds each, by name."""

MODEL_NAMES = (*MODELS, "mlp_WIDTH_WIDTH", "timm/NAME", "MODULE:NAME")
"""What a network can be called, for messages."""

_MLP = re.compile(r"mlp((?:_[1-9][0-9]{0,4}){1,16})")


def find_model(name: str) -> tuple[str, Mapping[str, Any]] | None:
    """Return the function that builds a network, and its arguments; None for any other name, `timm/NAME` included.

    It is one of `MODELS`, or a fully connected network named after the widths of its hidden layers: `mlp_800_800`.
    """
    widths = _MLP.fullmatch(name)
    if widths is not None:
        return "mlp", {"widths": tuple(int(width) for width in widths[1].split("_")[1:])}
    return MODELS.get(name)


LAYER_NORM = (
    *("aimv2", "beit", "caformer", "cait", "coat", "convformer", "convit", "convnext", "crossvit", "csatv2", "davit"),
    *("deepseek", "deit", "edgenext", "eva", "flexivit", "focalnet", "gcvit", "gemma", "gmixer", "gmlp", "hiera"),
    *("mambaout", "maxvit", "maxxvit", "mixer", "mobilenetv5", "mvitv2", "naflexvit", "nest", "pit", "poolformer"),
    *("pvt", "qwen", "rdnet", "resmlp", "sam", "sequencer", "swin_", "swinv2", "tiny_vit", "tnt", "twins", "vit"),
    *("volo", "xcit"),
)
"""How the names of timm's networks begin that normalize by layer norm (or RMS norm): transformers and the like."""


def has_layer_norms(name: str) -> bool:
    """Return whether a network is mainly normalized by layer norm, so that AdamW and a small learning rate suit it."""
    return name.startswith("timm/") and name.removeprefix("timm/").removeprefix("test_").startswith(LAYER_NORM)
