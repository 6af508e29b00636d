"""What the `config.json` next to weights says about the images that they were trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdschemes.config.parse import read_json
from kdschemes.config.paths import expand
from kdschemes.errors import UserError, first_line
from kdschemes.models.hub import fetch
from kdschemes.models.inputs import InputSpec, read_input
from kdschemes.models.weights import TORCH_WEIGHTS
from kdschemes.storage.naming import CONFIG, HUB, WEIGHTS, no_weights


def described_input(weights: str | Path, channels: int) -> InputSpec:
    """Return the images that weights, given as for `load_weights`, were trained on; all unknown without a description.

    Raises:
        UserError: the weights are missing, or their description cannot be read.
    """
    file = _hub_config(str(weights)) if str(weights).startswith(HUB) else config_beside(Path(expand(str(weights))))
    if file is None:
        return InputSpec()
    try:
        return input_of(read_json(file), channels)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{file} does not say what images the network needs ({first_line(error)}): correct or remove it"
        ) from None


def input_of(config: Mapping[str, Any], channels: int) -> InputSpec:
    """Return the images that the network of a `config.json`, ours or timm's, was trained on.

    Raises:
        ValueError: a value is out of range.
        TypeError: a value has the wrong type.
    """
    described = config.get("pretrained_cfg", config) if isinstance(config, Mapping) else None
    if not isinstance(described, Mapping):
        raise TypeError("pretrained_cfg is not a table")
    found = read_input(described, channels)
    if "metadata" in config and "crop_mode" not in described:  # an older export, with timm's mean and std for any data
        return InputSpec(found.image_size)
    return found


def config_beside(path: Path) -> Path | None:
    """Return the `config.json` that describes a file or folder of weights; None if there is none.

    Raises:
        UserError: the weights are missing.
    """
    if not path.exists():
        raise no_weights(path)
    if path.is_file() and path.name not in (WEIGHTS, TORCH_WEIGHTS):
        return None
    file = (path if path.is_dir() else path.parent) / CONFIG
    return file if file.is_file() else None


def _hub_config(name: str) -> Path | None:
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return fetch(name.removeprefix(HUB), [CONFIG])
    except Exception as error:  # no network, no such repository, no permission
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        raise UserError(
            f"{CONFIG} of {name} cannot be downloaded ({first_line(error)}): check the name, or download the "
            "repository and give its path"
        ) from error
