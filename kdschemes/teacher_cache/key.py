"""The key of a cache: exactly what a teacher's outputs on the training views depend on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from kdschemes.config import Config
from kdschemes.config.data import SUBSET
from kdschemes.config.naming import HASHED_IF_SET, flatten
from kdschemes.data import DataModule
from kdschemes.data.image_folder import FolderSource
from kdschemes.data.own import OwnSource
from kdschemes.data.sources import MemorySource, Source
from kdschemes.errors import UserError
from kdschemes.models import StagedNetwork
from kdschemes.storage.naming import short_name

FORMAT = 1
"""Version of the files, chunks, and views; caches of another version are not read."""

NOT_OF_VIEWS = (
    *("name", "root", "num_workers", "classes", "val_fraction", "split_seed", "sampling", "unlabelled"),
    *SUBSET,
)
"""Dataset options that no view depends on, given the images and the training positions.

Those in `HASHED_IF_SET` that are not set are left out too: they are newer than caches.
"""

ROWS_AT_ONCE, FILES_AT_ONCE = 4096, 1024

Key = dict[str, Any]

_IMAGES: WeakKeyDictionary[Source, str] = WeakKeyDictionary()
_FILES: dict[bytes, str] = {}


def cache_key(network: StagedNetwork, data: DataModule, config: Config, images: str) -> Key:
    """Return what the outputs of a frozen network, as loaded, on a run's training views depend on.

    `images` identifies the training images by their contents (`images_digest`).
    """
    options = dataclasses.asdict(data.options)
    name = network.spec.name
    teacher = {"name": short_name(name), "input": repr(network.spec.input), "weights": weights_digest(network)}
    return {
        "format": FORMAT,
        "teacher": teacher | ({"code": config.code[name]} if name in config.code else {}),
        "data": {
            "name": short_name(data.options.name),
            "images": images,
            "samples": data.sizes["train"],
            "positions": _digest(data.positions["train"]),
        }
        | ({"code": config.code[data.options.name]} if data.options.name in config.code else {}),
        "views": {
            name: value
            for name, value in options.items()
            if name not in NOT_OF_VIEWS and (f"data.{name}", value) not in HASHED_IF_SET.items()
        },
        "seed": data.seed,
        "arithmetic": {
            "precision": config.precision,
            "teacher_precision": config.teacher.precision,
            "channels_last": config.train.channels_last,
            "device": data.device.type,
            "split": config.teacher.placement == "sharded",
        },
    }


def key_digest(key: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def folder_name(key: Mapping[str, Any]) -> str:
    """Return the name of a cache's folder: readable parts, then the first 8 digits of the key's digest."""
    teacher = key["teacher"]["name"].replace("/", "_")
    return "-".join((teacher, key["data"]["name"], f"seed{key['seed']}", key_digest(key)[:8]))


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Return the differences between two keys, as 'seed (1 there, 0 here)', or "" if they are equal."""
    theirs, ours = flatten(there), flatten(here)
    names = [name for name in sorted(theirs.keys() | ours.keys()) if theirs.get(name) != ours.get(name)]
    return ", ".join(f"{name} ({_short(theirs.get(name))} there, {_short(ours.get(name))} here)" for name in names)


def weights_digest(network: StagedNetwork) -> str:
    """Return the SHA-256 of a network's parameters and buffers with their plain names, dtypes, and shapes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.plain_state().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def images_digest(data: DataModule, watch: Callable[[str], None]) -> str:
    """Return the SHA-256 of the training images: of their pixels if in memory, of the files' bytes in a folder.

    Files are read once per process, as long as their sizes and times of change stay the same; `watch` is called with a
    line on the progress after every `FILES_AT_ONCE` files, and may raise.

    Raises:
        UserError: an image cannot be read, or the source is of another kind.
    """
    source = data.source
    if isinstance(source, FolderSource):
        paths = source.decoder.paths["train"]
        return _files_digest([paths[position] for position in data.positions["train"].tolist()], watch)
    if isinstance(source, OwnSource):
        return source.digest
    if not isinstance(source, MemorySource):
        raise UserError(f"teacher outputs on a {type(source).__name__} cannot be cached: set teacher.cache=none")
    if source not in _IMAGES:
        digest = hashlib.sha256()
        digest.update(f"{list(source.mean)} {list(source.std)}\n".encode())
        inner = slice(source.padding["train"], source.padding["train"] + source.image_size)
        for start in range(0, len(source.images["train"]), ROWS_AT_ONCE):
            digest.update(_bytes(source.images["train"][start : start + ROWS_AT_ONCE, :, inner, inner]))
        _IMAGES[source] = digest.hexdigest()
    return _IMAGES[source]


def _files_digest(paths: Sequence[str], watch: Callable[[str], None]) -> str:
    """Return the SHA-256 of the contents of files, read by several threads; their names do not count."""
    try:
        states, contents = hashlib.sha256(), hashlib.sha256()
        for path in paths:
            found = os.stat(path)
            states.update(f"{path} {found.st_size} {found.st_mtime_ns}\n".encode())
        if (state := states.digest()) not in _FILES:
            with ThreadPoolExecutor() as threads:
                for start in range(0, len(paths), FILES_AT_ONCE):
                    watch(f"teacher cache: {start:,} of {len(paths):,} images read, to identify them by their contents")
                    for content in threads.map(_file_digest, paths[start : start + FILES_AT_ONCE]):
                        contents.update(content)
            _FILES[state] = contents.hexdigest()
    except OSError as error:
        raise UserError(f"cannot read the image {error.filename} ({error.strerror}): restore it") from None
    return _FILES[state]


def _file_digest(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(_bytes(tensor)).hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _short(value: object) -> str:
    return value[:8] if isinstance(value, str) and len(value) == 64 else str(value)
