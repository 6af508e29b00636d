"""The names of run folders: what can change a run's result, and nothing else. Nothing here imports torch."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdschemes.checksums import file_checksum
from kdschemes.config import Config
from kdschemes.config.code import GIVEN, parse_code
from kdschemes.config.data import ImageFolder, OwnData
from kdschemes.config.naming import HASHED_IF_SET, NOT_HASHED, TEACHER_TRAINING, to_tree
from kdschemes.errors import UserError
from kdschemes.storage.class_folders import list_root, list_unlabelled

WEIGHTS, CONFIG, HUB = "model.safetensors", "config.json", "hf_hub:"

MOST_OF_A_PART = 80
"""Characters of a part of a run's name: a folder's name has at most 255 bytes."""

RUN_NAME = re.compile(r".+-seed\d+-[0-9a-f]{8}")


def run_name(config: Config) -> str:
    """Return the name of the run's folder: readable parts, then the hash of the configuration.

    After `image_folder` follow 8 hexadecimal digits of the digest of the images' names, sizes and labels, after data of
    the user's own those of the images and labels.

    Raises:
        UserError: the images cannot be listed, or given weights are missing.
    """
    model, data = (short_name(name).replace("/", "_") for name in (config.model.name, config.data.name))
    if isinstance(config.data, ImageFolder):
        data = f"{data}_{list_root(config.data.root).digest[:8]}"
    elif isinstance(config.data, OwnData) and not config.data.name.startswith(GIVEN):
        from kdschemes.storage.own_data import own_images  # it imports NumPy

        data = f"{data}_{own_images(config.data, config.code.get(config.data.name, '')).digest[:8]}"
    parts = (config.scheme.name, config.scheme.method, data, model, f"seed{config.seed}")
    return "-".join((*(part[:MOST_OF_A_PART] for part in parts), config_hash(config)))


def config_hash(config: Config) -> str:
    """Return 8 hexadecimal digits that identify what is computed on the data.

    The keys in `NOT_HASHED`, those in `HASHED_IF_SET` that are not set, those of a teacher's training if its weights
    are given, and groups that the scheme does not use are excluded. Given weights, images without labels and Python
    code count by their content.

    Raises:
        UserError: given weights are missing.
    """
    tree = by_content(to_tree(config))
    for name in (*NOT_HASHED, *HASHED_IF_SET):
        *groups, key = name.split(".")
        keys = functools.reduce(lambda inner, group: inner.get(group, {}), groups, tree)
        if name in NOT_HASHED or keys.get(key) == HASHED_IF_SET[name]:
            keys.pop(key, None)
    if isinstance(config.data, ImageFolder) and config.data.unlabelled is not None:
        tree["data"]["unlabelled"] = list_unlabelled(config.data.unlabelled)[1]
    if "resume_from" in tree:
        tree["resume_from"] = Path(os.path.abspath(tree["resume_from"])).name
    if "teacher" in tree and (config.teacher.checkpoint is not None or config.teacher.pretrained):
        for key in TEACHER_TRAINING:
            del tree["teacher"][key]
    for group in ("model", "teacher"):
        if group in tree:
            tree[group]["checkpoint"] = _identities(tree[group]["checkpoint"])
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:8]


def short_name(name: str) -> str:
    """Return a name without the folders of the Python code that it may name."""
    code = parse_code(name)
    return name.removeprefix(GIVEN) if code is None else code.short


def by_content(tree: Mapping[str, Any]) -> Any:
    """Return a configuration with the names of Python code replaced by what they mean, wherever it is."""
    return _by_content(tree, tree.get("code") or {})


def _by_content(value: Any, digests: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _by_content(each, digests) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_by_content(each, digests) for each in value]
    return f"{short_name(value)} {digests[value]}" if isinstance(value, str) and value in digests else value


def _identities(given: str | list[str] | None) -> str | list[str] | None:
    if given is None:
        return None
    return _identity(given) if isinstance(given, str) else [_identity(each) for each in given]


def _identity(given: str) -> str:
    """Return what identifies given weights: the name of the run that exports them, or the digest of their file.

    The description beside the file, which tells the order of its classes, counts too. A run's name stands for its
    weights before it has finished, too.
    """
    path = Path(given)
    folder = path.parent if path.name == WEIGHTS else path
    which = "/best" if folder.name == "best" else ""
    run = folder.parent if which else folder
    if RUN_NAME.fullmatch(run.name):
        return run.name + which
    files = [folder / WEIGHTS, folder / CONFIG] if path.is_dir() or path.name == WEIGHTS else [path]
    try:
        return " ".join(_checksum(file, *_state(file)) for file in files if file == files[0] or file.is_file())
    except OSError:
        if given.startswith(HUB):
            return given
        raise no_weights(files[0]) from None


def no_weights(file: Path) -> UserError:
    """Return the error for given weights that are not there."""
    return UserError(f"no weights at {file}: give a .safetensors or torch file, or a folder with {WEIGHTS}")


def _state(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


@functools.cache
def _checksum(file: Path, size: int, mtime_ns: int) -> str:
    return file_checksum(file)
