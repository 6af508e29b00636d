"""Networks by name: kdschemes' own, and any timm model as `timm/NAME`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kdschemes.config import models
from kdschemes.config.parse import read_json
from kdschemes.config.paths import expand
from kdschemes.errors import UserError, first_line, unknown
from kdschemes.models.base import ModelSpec, Stage, StagedNetwork
from kdschemes.models.convnet import convnet
from kdschemes.models.cost import count_exit_macs, count_macs, count_parameters
from kdschemes.models.described import described_input, input_of
from kdschemes.models.exits import EarlyExit, ExitNetwork, confidence
from kdschemes.models.inputs import AdaptInput, InputSpec, crop_fraction
from kdschemes.models.mlp import mlp
from kdschemes.models.mobilenet import mobilenet_v2
from kdschemes.models.plain_cnn import lenet5, plain_cnn
from kdschemes.models.probe import describe_stages, stages
from kdschemes.models.recombined import RECOMBINED, Recombined, rebuilt
from kdschemes.models.resnet import cifar_resnet, cifar_resnet_x4, resnet18_cifar
from kdschemes.models.sequential import Branch, SequentialNetwork, Trunk, split
from kdschemes.models.shufflenet import shufflenet_v1, shufflenet_v2
from kdschemes.models.vgg import vgg
from kdschemes.models.weights import EXITS_CONFIG, load_exit_weights, load_weights, save_exits, save_weights
from kdschemes.models.wide_resnet import wide_resnet
from kdschemes.storage.naming import CONFIG

__all__ = [
    "MODELS",
    "AdaptInput",
    "Branch",
    "EarlyExit",
    "ExitNetwork",
    "InputSpec",
    "ModelSpec",
    "Recombined",
    "Stage",
    "StagedNetwork",
    "Trunk",
    "confidence",
    "count_exit_macs",
    "count_macs",
    "count_parameters",
    "create_model",
    "crop_fraction",
    "describe_stages",
    "described_input",
    "load_exit_model",
    "load_model",
    "load_weights",
    "pretrained_input",
    "save_exits",
    "save_weights",
    "split",
    "stages",
]

_BUILDERS: dict[str, Callable[..., SequentialNetwork]] = {
    builder.__name__: builder
    for builder in (
        *(lenet5, plain_cnn),
        *(convnet, resnet18_cifar, cifar_resnet, cifar_resnet_x4, wide_resnet, vgg),
        *(mlp, mobilenet_v2, shufflenet_v1, shufflenet_v2),
    )
}

MODELS: dict[str, Callable[[int, int, int], SequentialNetwork]] = {
    name: partial(_BUILDERS[builder], **sizes) for name, (builder, sizes) in models.MODELS.items()
}
"""kdschemes' own networks: functions of (number of classes, channels, image side in pixels)."""


def create_model(
    name: str,
    *,
    num_classes: int,
    channels: int,
    image_size: int,
    pretrained: bool = False,
    dropout: Mapping[str, float] | None = None,
) -> StagedNetwork:
    """Build a network by name: one of `MODELS`, `mlp_WIDTH_WIDTH`, or `timm/NAME`.

    Initial weights come from torch's global random generator, which the caller seeds. `pretrained` loads timm's
    pretrained weights. `dropout` are the probabilities `dropout` and `input_dropout` of `mlp`; it has no effect on
    other networks. Raises `UserError` for an unknown name, an unsupported image size or unavailable weights.
    """
    network: StagedNetwork
    found = models.find_model(name)
    if name.startswith("timm/"):
        from kdschemes.models.timm_network import create_timm

        network = create_timm(
            name.removeprefix("timm/"),
            num_classes=num_classes,
            channels=channels,
            image_size=image_size,
            pretrained=pretrained,
        )
    elif found is None:
        raise unknown("model", name, models.MODEL_NAMES)
    elif pretrained:
        raise UserError(f"{name} has no pretrained weights: give a checkpoint, or use a timm/NAME model")
    else:
        builder, sizes = found
        regularized = dropout or {} if builder == mlp.__name__ else {}
        network = _BUILDERS[builder](num_classes, channels, image_size, **sizes, **regularized)
    network.spec = ModelSpec(name, num_classes, channels, image_size)
    return network


def pretrained_input(name: str, channels: int) -> InputSpec:
    """Return the images that the pretrained weights of a network were trained on; all unknown if it has none."""
    if not name.startswith("timm/"):
        return InputSpec()
    from kdschemes.models import timm_network

    return timm_network.pretrained_input(name.removeprefix("timm/"), channels)


def load_model(folder: str | Path) -> StagedNetwork:
    """Load the network that `save_weights` wrote into a folder, in evaluation mode.

    Its `spec` and `pretrained_cfg` say what its images must look like, and its `spec.label_names` what it tells apart.
    Random generators are not affected. Raises `UserError` if the folder does not contain such a network.
    """
    file = Path(expand(str(folder))) / CONFIG
    try:
        config = read_json(file)
        with torch.random.fork_rng(devices=[]):
            network = _described(config)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"no network at {folder}: {file} cannot be read ({first_line(error)})") from error
    load_weights(network, folder, num_classes=network.spec.num_classes)
    return network.eval()


def load_exit_model(folder: str | Path) -> ExitNetwork:
    """Load the network and exits that `save_weights` and `save_exits` wrote into a folder, in evaluation mode.

    Random generators are not affected. Raises `UserError` if the folder does not contain such a network.
    """
    network = load_model(folder)
    file = Path(expand(str(folder))) / EXITS_CONFIG
    spec = network.spec
    try:
        config = read_json(file)
        names, head = list(config["stages"]), str(config["head"])
        if head not in ("linear", "bottleneck"):
            raise ValueError(f"unknown exit head {head!r}")
        with torch.random.fork_rng(devices=[]):
            found = stages(network, spec.channels, spec.image_size)
            exits = ExitNetwork(network, names, head, num_classes=spec.num_classes, stages=found)  # type: ignore[arg-type]
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"no exits at {folder}: {file} cannot be read ({first_line(error)})") from error
    load_exit_weights(exits, folder)
    return exits.eval()


def _described(config: Mapping[str, Any]) -> StagedNetwork:
    """Build the network that a `config.json` describes."""
    if config["name"] == RECOMBINED:
        return rebuilt(config, _described(config["student"]))
    num_classes, channels, image_size = (int(config[key]) for key in ("num_classes", "channels", "image_size"))
    network = create_model(str(config["name"]), num_classes=num_classes, channels=channels, image_size=image_size)
    described, names = input_of(config, channels), tuple(map(str, config.get("label_names", ())))
    crop = float(config.get("pretrained_cfg", {}).get("crop_pct", 1.0))
    network.spec = replace(network.spec, mean=described.mean, std=described.std, crop_pct=crop, label_names=names)
    return network
