"""The folder of a cache: whose it is, and the room that there is for it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path

from kdschemes.errors import UserError
from kdschemes.storage.atomic import atomic_write
from kdschemes.teacher_cache.key import Key, differences, folder_name

KEY, REBUILD = "key.json", "rebuild.yaml"

RESERVE = 10**9
"""Bytes of the disk that are left free."""


def claim(folder: Path, key: Key, rebuild: str) -> None:
    """Make the folder of a cache, and see that it is that of this key. `rebuild` is the text of its `rebuild.yaml`.

    Raises:
        UserError: it is another one's, damaged, or cannot be written.
    """
    path = folder / KEY
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            if any(folder.glob("epoch*")):
                raise UserError(f"{folder} holds a teacher's answers without {KEY}: delete the folder")
            atomic_write(folder / REBUILD, rebuild.encode())
            atomic_write(path, (json.dumps(key, indent=2) + "\n").encode())
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}") from None
    if other := differences(read_key(folder), key):
        raise UserError(
            f"{path} is not of this run's teacher and views: {other}; the folder was moved, renamed or edited: "
            "delete it, or choose another teacher.cache_dir"
        )


def read_key(folder: Path) -> Key:
    """Return the key of a cache.

    Raises:
        UserError: the folder holds none, or it is damaged.
    """
    path = folder / KEY
    try:
        key: Key = json.loads(path.read_text())
        folder_name(key)
    except OSError as error:
        raise UserError(f"{folder} is no teacher cache: {KEY} cannot be read ({error.strerror or error})") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged: delete the folder, the next run writes it anew") from None
    return key


def check_space(root: Path, needed: int, limit: float) -> int:
    """See that `needed` bytes more fit below `root`, and return the bytes that are there already.

    Raises:
        UserError: they are more than `limit`, or than the disk has free.
    """
    there = taken(root)
    if needed and there + needed > limit:
        raise UserError(
            f"the teacher cache needs {in_words(needed)} more in {root}, where {in_words(there)} are, and "
            f"teacher.cache_limit_gb={limit / 1e9:g} GB: raise it, or delete what `kdschemes cache list {root}` shows"
        )
    place = next(path for path in (root.absolute(), *root.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if needed and needed + RESERVE > free:
        raise UserError(
            f"the teacher cache needs {in_words(needed)} more in {root}, and the disk has {in_words(free)} free, of "
            f"which {in_words(RESERVE)} are left free: choose another teacher.cache_dir"
        )
    return there


def taken(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(parent) / name).stat().st_size
    return total


def in_words(size: int) -> str:
    """Return bytes as text: 1 GB is 10^9 of them."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.2f} {name}"
    return f"{size:.0f} bytes"
