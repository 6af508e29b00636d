"""Networks by name: kdschemes' own, and any timm model as `timm/NAME`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdschemes.config import models
from kdschemes.config.code import DIGITS, GIVEN, CodeRefused, allow_named, code_digest, given, load_code, parse_code
from kdschemes.config.parse import read_json
from kdschemes.config.paths import expand
from kdschemes.config.plugins import load_installed, load_plugin, origin, register
from kdschemes.errors import UserError, first_line, unknown
from kdschemes.models.base import ModelSpec, Stage, StagedNetwork, scales_by_stage
from kdschemes.models.convnet import convnet
from kdschemes.models.cost import count_exit_macs, count_macs, count_parameters
from kdschemes.models.custom_network import CustomNetwork, make_network
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
    "CustomNetwork",
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
    "register_model",
    "save_exits",
    "save_weights",
    "scales_by_stage",
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
    kwargs: Mapping[str, Any] | None = None,
    stages: Sequence[str] | None = None,
    digest: str = "",
) -> StagedNetwork:
    """Build a network by name: one of `MODELS`, `mlp_WIDTH_WIDTH`, `timm/NAME`, or Python code as `MODULE:NAME`.

    Initial weights come from torch's global random generator, which the caller seeds. `pretrained` loads timm's
    pretrained weights. `dropout` are the probabilities `dropout` and `input_dropout` of `mlp`; it has no effect on
    other networks. `kwargs` are further arguments of timm's and the user's own networks, `stages` the submodules of the
    latter that are stages (None: found by a probe), and `digest` is how that of the code must begin. Raises `UserError`
    for an unknown name, an unsupported image size or unavailable weights, `CodeRefused` for code that is not allowed.
    """
    network: StagedNetwork
    code: dict[str, str] = {}
    found = models.find_model(name)
    sizes = {"num_classes": num_classes, "channels": channels, "image_size": image_size}
    if name.startswith(GIVEN) or parse_code(name) is not None:
        made, code = _own_network(name, sizes, kwargs, digest)
        network = _staged(name, made, sizes, stages)
    elif name in models.REGISTERED or (found is None and load_installed() and name in models.REGISTERED):
        made, code = make_network(models.REGISTERED[name], name, **sizes, kwargs=kwargs), origin(name)
        network = _staged(name, made, sizes, stages)
    elif name.startswith("timm/"):
        from kdschemes.models.timm_network import create_timm

        network = create_timm(
            name.removeprefix("timm/"),
            num_classes=num_classes,
            channels=channels,
            image_size=image_size,
            pretrained=pretrained,
            kwargs=kwargs,
        )
    elif found is None:
        raise unknown("model", name, (*models.MODEL_NAMES, *models.REGISTERED))
    elif pretrained:
        raise UserError(f"{name} has no pretrained weights: give a checkpoint, or use a timm/NAME model")
    else:
        builder, options = found
        regularized = dropout or {} if builder == mlp.__name__ else {}
        network = _BUILDERS[builder](num_classes, channels, image_size, **options, **regularized)
        kwargs = None
    spec = ModelSpec(name, num_classes, channels, image_size, kwargs=dict(kwargs or {}), code=code)
    network.spec = _with_input(spec, getattr(network, "spec", spec))
    return network


def _with_input(spec: ModelSpec, own: ModelSpec) -> ModelSpec:
    """Return a specification with the images of another, that of a network of kdschemes from the user's code.

    Without a mean, it was not loaded from a run, and has seen no images yet.

    Raises:
        UserError: it is for other classes or channels.
    """
    for key, title in (("num_classes", "class(es)"), ("channels", "channel(s)")):
        if getattr(own, key) != getattr(spec, key):
            raise UserError(f"{spec.name} has {getattr(own, key)} {title}, but the data has {getattr(spec, key)}")
    return spec if own.mean is None else replace(spec, image_size=own.image_size, mean=own.mean, std=own.std)


def _staged(name: str, made: nn.Module, sizes: Mapping[str, int], stages: Sequence[str] | None) -> StagedNetwork:
    return made if isinstance(made, StagedNetwork) else CustomNetwork(name, made, **sizes, stages=stages)


def register_model(name: str, builder: Callable[..., nn.Module]) -> None:
    """Make a network available as `model=NAME`, and to teachers, peers and studies.

    `builder` is called with what its signature accepts of num_classes, channels and image_size, and with
    `model.kwargs`. It returns a `StagedNetwork`, or any module that returns logits.

    Raises:
        UserError: another network has the name.
    """
    if models.find_model(name) is not None:
        raise UserError(f"model {name} is a network of kdschemes: choose another name")
    register(models.REGISTERED, name, builder, "model")


def _own_network(
    name: str, sizes: Mapping[str, int], kwargs: Mapping[str, Any] | None, digest: str
) -> tuple[nn.Module, dict[str, str]]:
    """Return a network of the user's, and the code that makes it with its digest; a module is copied."""
    code = parse_code(name)
    if code is None:
        made = given(name, "pass the network again, as kdschemes.train(student=...) or load_model(folder, network=...)")
        if isinstance(made, nn.Module):
            return copy.deepcopy(made), {}
        return make_network(made, name, **sizes, kwargs=kwargs), {}
    make = load_code(code, "network", digest)
    return make_network(make, name, **sizes, kwargs=kwargs), {name: code_digest(code)[:DIGITS]}


def pretrained_input(name: str, channels: int) -> InputSpec:
    """Return the images that the pretrained weights of a network were trained on; all unknown if it has none."""
    if not name.startswith("timm/"):
        return InputSpec()
    from kdschemes.models import timm_network

    return timm_network.pretrained_input(name.removeprefix("timm/"), channels)


def load_model(
    folder: str | Path,
    *,
    network: nn.Module | Callable[..., nn.Module] | None = None,
    allow: str | Sequence[str] = (),
) -> StagedNetwork:
    """Load the network that `save_weights` wrote into a folder, in evaluation mode.

    Its `spec` and `pretrained_cfg` say what its images must look like, and its `spec.label_names` what it tells apart.
    Random generators are not affected. Of a network of the user's own, the folder names the Python code that makes it,
    which runs only if it is in `allow`, as `FILE.py:NAME` or `MODULE:NAME`; or `network` is such a network (it gets the
    weights), or a class or function that makes one. Raises `UserError` if the folder does not contain such a network.
    """
    file = Path(expand(str(folder))) / CONFIG
    allow_named([allow] if isinstance(allow, str) else allow)
    try:
        config = read_json(file)
        with torch.random.fork_rng(devices=[]):
            loaded = _described(config, network)
    except CodeRefused as error:
        names = ", ".join(repr(name) for _, name in error.refused)
        raise CodeRefused(error.refused, f"load_model({str(folder)!r}, allow=[{names}])") from None
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"no network at {folder}: {file} cannot be read ({first_line(error)})") from error
    load_weights(loaded, folder, num_classes=loaded.spec.num_classes)
    return loaded.eval()


def load_exit_model(
    folder: str | Path,
    *,
    network: nn.Module | Callable[..., nn.Module] | None = None,
    allow: str | Sequence[str] = (),
) -> ExitNetwork:
    """Load the network and exits that `save_weights` and `save_exits` wrote into a folder, in evaluation mode.

    Random generators are not affected; `network` and `allow` are as for `load_model`. Raises `UserError` if the folder
    does not contain such a network.
    """
    loaded = load_model(folder, network=network, allow=allow)
    file = Path(expand(str(folder))) / EXITS_CONFIG
    spec = loaded.spec
    try:
        config = read_json(file)
        names, head = list(config["stages"]), str(config["head"])
        if head not in ("linear", "bottleneck"):
            raise ValueError(f"unknown exit head {head!r}")
        with torch.random.fork_rng(devices=[]):
            found = stages(loaded, spec.channels, spec.image_size)
            exits = ExitNetwork(loaded, names, head, num_classes=spec.num_classes, stages=found)  # type: ignore[arg-type]
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"no exits at {folder}: {file} cannot be read ({first_line(error)})") from error
    load_exit_weights(exits, folder)
    return exits.eval()


def _described(config: Mapping[str, Any], own: nn.Module | Callable[..., nn.Module] | None = None) -> StagedNetwork:
    """Build the network that a `config.json` describes, where it is the user's own with `own`, unless that is None."""
    if config["name"] == RECOMBINED:
        return rebuilt(config, _described(config["student"], own))
    name, kwargs, channels = str(config["name"]), config.get("kwargs"), int(config["channels"])
    sizes: dict[str, Any] = {key: int(config[key]) for key in ("num_classes", "channels", "image_size")}
    network: StagedNetwork
    if own is not None:
        made = own if isinstance(own, nn.Module) else make_network(own, name, **sizes, kwargs=kwargs)
        network = _staged(name, made, sizes, config.get("stages"))
        network.spec = ModelSpec(name, **sizes, kwargs=dict(kwargs or {}), code=config.get("code", {}))
    else:
        code: dict[str, str] = config.get("code", {})
        for plugin in code.keys() - {name}:
            load_plugin(plugin, code[plugin])
        network = create_model(name, **sizes, kwargs=kwargs, stages=config.get("stages"), digest=code.get(name, ""))
    described, names = input_of(config, channels), tuple(map(str, config.get("label_names", ())))
    crop = float(config.get("pretrained_cfg", {}).get("crop_pct", 1.0))
    network.spec = replace(network.spec, mean=described.mean, std=described.std, crop_pct=crop, label_names=names)
    return network
