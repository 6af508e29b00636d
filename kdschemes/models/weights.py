"""Read weights from files of several formats, and write them in formats that other tools can read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from kdschemes.checksums import json_with_checksum, safetensors_with_checksum
from kdschemes.config.paths import expand
from kdschemes.errors import UserError, first_line
from kdschemes.models.base import StagedNetwork
from kdschemes.models.checkpoint_files import read_state, unwrapped
from kdschemes.models.exits import ExitNetwork
from kdschemes.models.hub import fetch
from kdschemes.models.repdistiller import our_name
from kdschemes.printable import printable
from kdschemes.storage.atomic import atomic_write
from kdschemes.storage.naming import CONFIG, HUB, WEIGHTS, no_weights

TORCH_WEIGHTS = "pytorch_model.bin"

EXITS, EXITS_CONFIG = "exits.safetensors", "exits.json"

MOST_LISTED = 10


def load_weights(network: StagedNetwork, path: str | Path, *, num_classes: int, new_head: bool = False) -> None:
    """Load weights into a network from a .safetensors file, a torch file, or a folder with model.safetensors.

    `hf_hub:OWNER/NAME` is downloaded from the Hugging Face Hub, once. Of a torch file only tensors are read, never
    code; they may be under the keys and prefixes that `checkpoint_files` lists, and may have RepDistiller's names. With
    `new_head`, the classifier keeps its initial weights, whatever the file's is. The first convolution is adapted from
    RGB to gray images (its weights are summed) and back. `network.notes` then says what was adapted or left out.

    Raises:
        UserError: the file is missing or damaged, its classifier does not have `num_classes` classes, a tensor is
            missing, unexpected, has another shape or is not finite.
    """
    path = _fetch(str(path)) if str(path).startswith(HUB) else Path(expand(str(path)))
    wanted = network.plain_state()
    state, notes = _read(path, wanted)
    state = {our_name(network.spec.name, name): tensor for name, tensor in state.items()}
    state = {name: wanted[name] for name in wanted if name.endswith(".num_batches_tracked")} | state
    heads = tuple(f"{classifier}." for classifier in network.classifiers)
    if new_head:
        state = {name: tensor for name, tensor in state.items() if not name.startswith(heads)}
        state |= {name: tensor for name, tensor in wanted.items() if name.startswith(heads)}
        notes.append(f"new classifier for {num_classes} classes")
    for head in heads:
        tensor = state.get(f"{head}weight")
        if tensor is not None and tensor.ndim > 0 and len(tensor) != num_classes:
            raise UserError(
                f"{path} has {len(tensor)} classes, but the data has {num_classes}; use weights trained for "
                f"{num_classes} classes, or give a student a new classifier with model.head=new"
            )
    notes += _adapt_stem(state, wanted)
    _check_fit(state, wanted, path, network.spec.name)
    network.load_plain_state(state)
    network.notes = (f"{path}: {'; '.join(notes)}",) if notes else ()


def _adapt_stem(state: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Sum the first convolution's weights over RGB for gray images, or divide them among RGB; return what was done.

    A gray image then has the outputs of its three equal channels, and an image with equal channels those of gray.
    """
    stem = next((name for name, tensor in wanted.items() if tensor.ndim == 4 and name.endswith("weight")), None)
    weight = state.get(stem) if stem is not None else None
    if stem is None or weight is None or weight.ndim != 4:
        return []
    match weight.shape[1], wanted[stem].shape[1]:
        case 3, 1:
            state[stem] = weight.sum(1, keepdim=True)
            return [f"{stem} is summed over RGB, because the data is gray"]
        case 1, 3:
            state[stem] = weight.expand(-1, 3, -1, -1) / 3
            return [f"{stem} is for gray images, and divided among RGB"]
    return []


def load_exit_weights(network: ExitNetwork, folder: str | Path) -> None:
    """Load exits written by `save_exits`. Raises `UserError` if they are missing, broken or do not fit the network."""
    path = Path(expand(str(folder))) / EXITS
    wanted = network.exits.state_dict()
    state, _ = _read(path, wanted)
    _check_fit(state, wanted, path, f"the exits of {network.network.spec.name}")
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
        raise UserError(f"{path} does not fit {whose}: {printable(listed)}{more}")
    for name, tensor in state.items():
        if not tensor.to(wanted[name].dtype).isfinite().all():
            raise UserError(f"{path} cannot be used: {name} is not finite (NaN or infinity); give other weights")


def _prefixes_that_fit(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """Return which prefixes of names hold a whole network, and how to save it; "" if none does."""
    first = next(iter(wanted))
    candidates = [name.removesuffix(first) for name in state if name.endswith(f".{first}")]
    counters = ".num_batches_tracked"
    fits = [
        prefix
        for prefix in candidates
        if all(
            f"{prefix}{name}" in state and state[f"{prefix}{name}"].shape == tensor.shape
            for name, tensor in wanted.items()
            if not name.endswith(counters)
        )
    ]
    if not fits:
        return ""
    what = " or ".join(f"'{prefix}'" for prefix in fits)
    prefix = fits[0]
    cut = f"{{k.removeprefix('{prefix}'): v for k, v in state.items() if k.startswith('{prefix}')}}"
    return f"its {len(wanted)} names are there with the prefix {what}: save them without it, as {cut}"


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
    atomic_write(folder / CONFIG, json_with_checksum(config))


def save_exits(network: ExitNetwork, folder: str | Path) -> None:
    """Write a network's exits as `exits.safetensors` and `exits.json` into the folder that `save_weights` wrote to.

    `kdschemes.models.load_exit_model` loads both. Raises `UserError` if the folder cannot be written.
    """
    folder = Path(folder)
    _write(folder / EXITS, network.exits.state_dict())
    atomic_write(folder / EXITS_CONFIG, json_with_checksum(network.config()))


def _write(path: Path, state: Mapping[str, Tensor]) -> None:
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()
    }
    atomic_write(path, safetensors_with_checksum(save(tensors, metadata={"format": "pt"})))


def _fetch(name: str) -> Path:
    """Return the local path of a Hub repository's weights, downloaded if they are not there yet."""
    try:
        return fetch(name.removeprefix(HUB), (WEIGHTS, TORCH_WEIGHTS))
    except Exception as error:  # no network, no such repository, no permission
        raise UserError(
            f"{name} cannot be downloaded ({first_line(error)}): check the name, or download the file and give its path"
        ) from error


def _read(path: Path, wanted: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors in a file or folder by plain name, on the CPU, and what the user should know of them."""
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise no_weights(file)
    state, notes = read_state(file)
    plain, more = unwrapped(state, wanted)
    if not plain.keys() & wanted.keys() and (hint := _prefixes_that_fit(state, wanted)):
        raise UserError(f"{file} has other names than the network: {printable(hint)}")
    return plain, notes + more
