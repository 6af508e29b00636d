"""The folder of a cache: its key, and the disk space available for it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path

from kdschemes.config.parse import parse_json
from kdschemes.errors import UserError
from kdschemes.storage.atomic import atomic_write
from kdschemes.teacher_cache.key import Key, differences, folder_name

KEY, REBUILD = "key.json", "rebuild.yaml"

RESERVE = 10**9
"""Bytes that must remain free on the disk."""


def claim(folder: Path, key: Key, rebuild: str) -> None:
    """Create the folder of a cache, or check that it has this key. `rebuild` is the text of its `rebuild.yaml`.

    Raises:
        UserError: the folder belongs to another cache, is damaged, or cannot be written.
    """
    path = folder / KEY
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            if any(folder.glob("epoch*")):
                raise UserError(f"{folder} contains a teacher's outputs without {KEY}: delete the folder")
            atomic_write(folder / REBUILD, rebuild.encode())
            atomic_write(path, (json.dumps(key, indent=2) + "\n").encode())
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}") from None
    if other := differences(read_key(folder), key):
        raise UserError(
            f"{path} does not match this run's teacher and views: {other}; the folder was moved, renamed, or edited: "
            "delete it, or choose another teacher.cache_dir"
        )


def read_key(folder: Path) -> Key:
    """Return the key of a cache.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = folder / KEY
    try:
        key: Key = parse_json(path.read_text())
        folder_name(key)
    except OSError as error:
        raise UserError(f"{folder} is not a teacher cache: {KEY} cannot be read ({error.strerror or error})") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged: delete the folder, the next run rewrites it") from None
    return key


def check_space(root: Path, needed: int, limit: float) -> int:
    """Check that `needed` more bytes fit in `root`, and return the bytes already used there.

    Raises:
        UserError: the total exceeds `limit`, or the disk does not have enough free space.
    """
    there = taken(root)
    if needed and there + needed > limit:
        raise UserError(
            f"the teacher cache needs {in_words(needed)} more in {root}, which already has {in_words(there)}, over "
            f"teacher.cache_limit_gb={limit / 1e9:g}: raise it, or delete caches from `kdschemes cache list {root}`"
        )
    place = next(path for path in (root.absolute(), *root.absolute().parents) if path.exists())
    if not place.is_dir():
        raise UserError(f"the teacher cache cannot be written to {root}: {place} is not a folder")
    free = shutil.disk_usage(place).free
    if needed and needed + RESERVE > free:
        raise UserError(
            f"the teacher cache needs {in_words(needed)} more in {root}, but the disk has {in_words(free)} free, of "
            f"which {in_words(RESERVE)} must stay free: choose another teacher.cache_dir"
        )
    return there


def taken(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(parent) / name).stat().st_size
    return total


def in_words(size: int) -> str:
    """Return a size in bytes as text, with 1 GB = 10^9 bytes."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.2f} {name}"
    return f"{size:.0f} bytes"
