"""Networks by name: kdschemes' own, and any timm model as `timm/NAME`."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from kdschemes.errors import UserError, unknown
from kdschemes.models.base import ModelSpec, Stage, StagedNetwork, first_line
from kdschemes.models.convnet import convnet
from kdschemes.models.cost import count_exit_macs, count_macs, count_parameters
from kdschemes.models.exits import ExitNetwork
from kdschemes.models.probe import describe_stages, stages
from kdschemes.models.resnet import cifar_resnet, resnet18_cifar
from kdschemes.models.sequential import Branch, SequentialNetwork, Trunk, split
from kdschemes.models.weights import CONFIG, load_weights, save_weights

__all__ = [
    "MODELS",
    "Branch",
    "ExitNetwork",
    "ModelSpec",
    "Stage",
    "StagedNetwork",
    "Trunk",
    "count_exit_macs",
    "count_macs",
    "count_parameters",
    "create_model",
    "describe_stages",
    "load_model",
    "load_weights",
    "save_weights",
    "split",
    "stages",
]

MODELS: dict[str, Callable[[int, int, int], SequentialNetwork]] = {
    "convnet": convnet,
    "resnet18_cifar": resnet18_cifar,
    "resnet20": partial(cifar_resnet, depth=20),
    "resnet32": partial(cifar_resnet, depth=32),
    "resnet44": partial(cifar_resnet, depth=44),
    "resnet56": partial(cifar_resnet, depth=56),
    "resnet110": partial(cifar_resnet, depth=110),
}
"""kdschemes' own networks: (number of classes, channels, image side in pixels) to a network."""


def create_model(
    name: str, *, num_classes: int, channels: int, image_size: int, pretrained: bool = False
) -> StagedNetwork:
    """Build a network by name: one of `MODELS`, or `timm/NAME`.

    Its initial weights come from torch's global random generator, which the caller seeds. `pretrained` takes timm's
    published weights. Raises `UserError` for an unknown name, an image size that the network refuses, and weights that
    cannot be had.
    """
    network: StagedNetwork
    if name.startswith("timm/"):
        from kdschemes.models.timm_network import create_timm

        network = create_timm(
            name.removeprefix("timm/"),
            num_classes=num_classes,
            channels=channels,
            image_size=image_size,
            pretrained=pretrained,
        )
    elif name not in MODELS:
        raise unknown("model", name, [*MODELS, "timm/NAME"])
    elif pretrained:
        raise UserError(f"{name} has no published weights: give a checkpoint, or take a timm/NAME model")
    else:
        network = MODELS[name](num_classes, channels, image_size)
    network.spec = ModelSpec(name, num_classes, channels, image_size)
    return network


def load_model(folder: str | Path) -> StagedNetwork:
    """Build the network that `save_weights` wrote into a folder, in evaluation mode.

    The random generators are left as they were. Raises `UserError` if the folder does not hold such a network.
    """
    file = Path(folder).expanduser() / CONFIG
    try:
        config = json.loads(file.read_text())
        name, sizes = str(config["name"]), [int(config[key]) for key in ("num_classes", "channels", "image_size")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"no network at {folder}: {file} cannot be read ({first_line(error)})") from error
    with torch.random.fork_rng(devices=[]):
        network = create_model(name, num_classes=sizes[0], channels=sizes[1], image_size=sizes[2])
    load_weights(network, folder, num_classes=sizes[0])
    return network.eval()
