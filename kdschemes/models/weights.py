"""Read weights from files of several formats, and write them in formats that other tools can read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from kdschemes.errors import UserError, first_line
from kdschemes.models.base import StagedNetwork
from kdschemes.models.exits import ExitNetwork
from kdschemes.storage.atomic import atomic_write

WEIGHTS, TORCH_WEIGHTS, CONFIG = "model.safetensors", "pytorch_model.bin", "config.json"

EXITS, EXITS_CONFIG = "exits.safetensors", "exits.json"

HUB = "hf_hub:"

MOST_LISTED = 10


def load_weights(network: StagedNetwork, path: str | Path, *, num_classes: int) -> None:
    """Load weights into a network from a .safetensors file, a torch file, or a folder with model.safetensors.

    `hf_hub:OWNER/NAME` is downloaded from the Hugging Face Hub, once. A torch file is read without executing code; its
    tensors may be under `state_dict` or `model`, and names may start with `module.` or contain `_orig_mod.`. Raises
    `UserError` if the file is missing or broken, if its classifier does not have `num_classes` classes, or if a tensor
    is missing, unexpected or has another shape.
    """
    path = _fetch(str(path)) if str(path).startswith(HUB) else Path(path).expanduser()
    state = {_plain_name(name): tensor for name, tensor in _read(path).items()}
    wanted = network.plain_state()
    for classifier in network.classifiers:
        tensor = state.get(f"{classifier}.weight")
        if tensor is not None and tensor.ndim > 0 and len(tensor) != num_classes:
            raise UserError(
                f"{path} has {len(tensor)} classes, but the data has {num_classes}; "
                f"use weights trained for {num_classes} classes"
            )
    _check_fit(state, wanted, path, network.spec.name)
    network.load_plain_state(state)


def load_exit_weights(network: ExitNetwork, folder: str | Path) -> None:
    """Load exits written by `save_exits`. Raises `UserError` if they are missing, broken or do not fit the network."""
    path = Path(folder).expanduser() / EXITS
    state = _read(path)
    _check_fit(state, network.exits.state_dict(), path, f"the exits of {network.network.spec.name}")
    network.exits.load_state_dict(state)


def _check_fit(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path, whose: str) -> None:
    problems = [f"missing {name}" for name in wanted if name not in state]
    problems += [f"unexpected {name}" for name in state if name not in wanted]
    problems += [
        f"{name} is {list(state[name].shape)} instead of {list(wanted[name].shape)}"
        for name in wanted
        if name in state and state[name].shape != wanted[name].shape
    ]
    if problems:
        listed = ", ".join(problems[:MOST_LISTED])
        more = f", and {len(problems) - MOST_LISTED} more" if len(problems) > MOST_LISTED else ""
        raise UserError(f"{path} does not fit {whose}: {listed}{more}")


def save_weights(
    network: StagedNetwork,
    folder: str | Path,
    *,
    state: Mapping[str, Tensor] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a network as `model.safetensors` and `config.json`, each atomically.

    `state` replaces the network's own weights (a moving average, a trunk joined with a branch) and has plain names.
    `metadata` must be JSON-serializable and is stored in the config; its `classes` are also timm's `label_names`. Load
    a timm model with `timm.create_model("local-dir:FOLDER", pretrained=True)`, any model with
    `kdschemes.models.load_model`. Raises `UserError` if the folder cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create folder {folder}: {error.strerror}; choose another") from error
    state = network.plain_state() if state is None else state
    assert state.keys() == network.plain_state().keys()
    metadata = dict(metadata or {})
    config = network.config() | {"metadata": metadata}
    if "classes" in metadata:
        config["label_names"] = metadata["classes"]
    _write(folder / WEIGHTS, state)
    atomic_write(folder / CONFIG, (json.dumps(config, indent=2) + "\n").encode())


def save_exits(network: ExitNetwork, folder: str | Path) -> None:
    """Write a network's exits as `exits.safetensors` and `exits.json` into the folder that `save_weights` wrote to.

    `kdschemes.models.load_exit_model` loads both. Raises `UserError` if the folder cannot be written.
    """
    folder = Path(folder)
    _write(folder / EXITS, network.exits.state_dict())
    atomic_write(folder / EXITS_CONFIG, (json.dumps(network.config(), indent=2) + "\n").encode())


def _write(path: Path, state: Mapping[str, Tensor]) -> None:
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()
    }
    atomic_write(path, save(tensors, metadata={"format": "pt"}))


def _fetch(name: str) -> Path:
    """Download a Hub repository's weights and return the local path."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        try:
            return Path(hf_hub_download(name.removeprefix(HUB), WEIGHTS))
        except EntryNotFoundError:
            return Path(hf_hub_download(name.removeprefix(HUB), TORCH_WEIGHTS))
    except Exception as error:  # no network, no such repository, no permission
        raise UserError(
            f"{name} cannot be downloaded ({first_line(error)}): check the name, or download the file and give its path"
        ) from error


def _plain_name(name: str) -> str:
    return name.replace("_orig_mod.", "").removeprefix("module.")


def _read(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a file or folder by name, on the CPU."""
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"no weights at {file}: give a .safetensors or torch file, or a folder with {WEIGHTS}")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file can make its reader fail in any way
        raise UserError(
            f"{file} cannot be read as tensors only (broken, or it contains code): {first_line(error)}"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not state or not all(isinstance(t, Tensor) for t in state.values()):
        raise UserError(f"{file} is not a dictionary of tensors; save the network's state_dict() there")
    return dict(state)
