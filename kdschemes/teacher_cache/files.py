"""The files of a cache: written whole or not at all, checked at every opening, mapped into memory.

A file holds one tensor of float16 in the format safetensors. Its header names the cache's key, the epoch, what computed
it, and the SHA-256 of these facts and of all values.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kdschemes.errors import UserError

ABANDONED = 3600.0
"""Seconds after its last change when a part of a file counts as left behind by a killed process."""

SUFFIX = ".safetensors"

DTYPE = np.dtype("<f2")

PIECE = 1 << 24

Facts = Mapping[str, str]


def file_name(epoch: int, what: str) -> str:
    """Return the name of the file of an epoch, counted from 0 (the name counts from 1), for `logits` or a stage."""
    return f"epoch{epoch + 1:04d}.{re.sub(r'[^A-Za-z0-9_.]', '-', what)}{SUFFIX}"


def file_size(shape: tuple[int, ...]) -> int:
    """Return the bytes of the values of a file."""
    size = DTYPE.itemsize
    for length in shape:
        size *= length
    return size


class Writer:
    """Writes one file, rows after rows; nothing is there until `finish`, and then the file of whoever was first.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """

    def __init__(self, path: Path, what: str, shape: tuple[int, ...], facts: Facts) -> None:
        self.path, self._what, self._shape, self._facts = path, what, shape, dict(facts)
        self._digest = hashlib.sha256(_stated(what, shape, self._facts))
        self._partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
        self._written = 0
        try:
            self._file = self._partial.open("wb")
            self._file.write(self._header("0" * 64))
            self._file.flush()
            self._remove_abandoned()
        except OSError as error:
            raise self._failed(error) from None

    def write(self, rows: np.ndarray) -> None:
        """Append rows."""
        data = rows.astype(DTYPE, copy=False).tobytes()
        self._digest.update(data)
        self._written += len(data)
        try:
            self._file.write(data)
        except OSError as error:
            raise self._failed(error) from None

    def finish(self) -> None:
        """Put the file in place, unless another process has put one there meanwhile."""
        assert self._written == file_size(self._shape), f"{self._written} bytes of {self._shape}"
        try:
            self._file.seek(0)
            self._file.write(self._header(self._digest.hexdigest()))
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            _place_first(self._partial, self.path)
        except OSError as error:
            raise self._failed(error) from None

    def abandon(self) -> None:
        """Remove what was written, unless it is in place."""
        with contextlib.suppress(OSError):
            self._file.close()
            self._partial.unlink(missing_ok=True)

    def _header(self, digest: str) -> bytes:
        tensor = {"dtype": "F16", "shape": list(self._shape), "data_offsets": [0, file_size(self._shape)]}
        text = json.dumps({"__metadata__": self._facts | {"sha256": digest}, self._what: tensor}).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def _remove_abandoned(self) -> None:
        now = self._partial.stat().st_mtime
        for other in self.path.parent.glob("*.partial"):
            with contextlib.suppress(OSError):
                if now - other.stat().st_mtime > ABANDONED:
                    other.unlink()

    def _failed(self, error: OSError) -> UserError:
        self.abandon()
        return UserError(f"{self.path} cannot be written: {error.strerror or error}; free the disk and run again")


def _place_first(partial: Path, path: Path) -> None:
    """Give a whole file its name, or drop it if there is a file of that name already."""
    try:
        os.link(partial, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        if not path.exists():
            partial.replace(path)
    partial.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_header(path: Path) -> tuple[int, str, tuple[int, ...], dict[str, str]]:
    """Return where the values of a file begin, what they are, their shape, and the facts with the checksum.

    Raises:
        UserError: it is damaged.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = os.fstat(file.fileno()).st_size
            header: dict[str, Any] = json.loads(file.read(min(length, size)))
        facts = {str(name): str(value) for name, value in header.pop("__metadata__").items()}
        ((what, tensor),) = header.items()
        shape = tuple(int(n) for n in tensor["shape"])
        if tensor["dtype"] != "F16" or size != 8 + length + file_size(shape) or "sha256" not in facts:
            raise ValueError("not as long as its header says")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, str(error).partition("\n")[0] or "no header") from None
    return 8 + length, str(what), shape, facts


def map_values(path: Path, what: str, shape: tuple[int, ...], facts: Facts, *, check: bool) -> np.ndarray:
    """Return the values of a file, mapped into memory; `check` reads them all and compares their checksum.

    `facts` are what the file must say of itself (more may be there).

    Raises:
        UserError: it is damaged, or of another cache or epoch.
    """
    start, there, their_shape, their_facts = read_header(path)
    theirs = {"values": there, "shape": str(list(their_shape))} | {name: their_facts.get(name) for name in facts}
    ours = {"values": what, "shape": str(list(shape))} | dict(facts)
    other = [f"{name} {theirs[name]} instead of {ours[name]}" for name in ours if theirs[name] != ours[name]]
    if other:
        raise UserError(f"{path} is not this cache's file ({', '.join(other)}): delete it, the next run writes it anew")
    if check:
        check_values(path)
    values: np.ndarray = np.memmap(path, DTYPE, "r", start, their_shape)
    return values


def check_values(path: Path) -> None:
    """Compare a file's values and facts with its checksum.

    Raises:
        UserError: they differ.
    """
    start, what, shape, facts = read_header(path)
    expected = facts.pop("sha256")
    digest = hashlib.sha256(_stated(what, shape, facts))
    values = np.memmap(path, np.uint8, "r", start)
    for piece in range(0, len(values), PIECE):
        digest.update(values[piece : piece + PIECE].data)
    if digest.hexdigest() != expected:
        raise _damaged(path, "its checksum is another")


def _stated(what: str, shape: tuple[int, ...], facts: Facts) -> bytes:
    return json.dumps([what, list(shape), dict(sorted(facts.items()))]).encode()


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is damaged ({reason}): delete it, the next run writes it anew")
