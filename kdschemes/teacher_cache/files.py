"""The files of a cache: written atomically, checked every time they are opened, memory-mapped.

A file holds one float16 tensor in safetensors format. Its header contains the cache's key, the epoch, the environment
that computed it, and the SHA-256 of this metadata and all values.
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

from kdschemes.config.parse import parse_json
from kdschemes.errors import UserError

ABANDONED = 3600.0
"""Seconds after its last change when a partial file counts as left behind by a killed process."""

SUFFIX = ".safetensors"

DTYPE = np.dtype("<f2")

PIECE = 1 << 24

Facts = Mapping[str, str]


def file_name(epoch: int, what: str) -> str:
    """Return the file name for an epoch (0-based; 1-based in the name) of the logits or of a stage's features."""
    return f"epoch{epoch + 1:04d}.{re.sub(r'[^A-Za-z0-9_.]', '-', what)}{SUFFIX}"


def file_size(shape: tuple[int, ...]) -> int:
    size = DTYPE.itemsize
    for length in shape:
        size *= length
    return size


class Writer:
    """Writes one file row by row; it appears only on `finish`, unless another process was first.

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
        data = rows.astype(DTYPE, copy=False).tobytes()
        self._digest.update(data)
        self._written += len(data)
        try:
            self._file.write(data)
        except OSError as error:
            raise self._failed(error) from None

    def finish(self) -> None:
        """Put the file in place, unless another process has done so in the meantime."""
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
        """Remove the partial file, if `finish` has not put it in place."""
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
    """Give a complete file its final name, or drop it if that file already exists."""
    try:
        os.link(partial, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        if not path.exists():
            partial.replace(path)
    partial.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_header(path: Path) -> tuple[int, str, tuple[int, ...], dict[str, str]]:
    """Return the offset of a file's values, the tensor's name and shape, and the metadata with the checksum.

    Raises:
        UserError: the file is damaged.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = os.fstat(file.fileno()).st_size
            header: dict[str, Any] = parse_json(file.read(min(length, size)))
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
    """Return the values of a file, memory-mapped; `check` reads them all and verifies the checksum.

    `facts` is metadata that the file must have (it may have more).

    Raises:
        UserError: the file is damaged, or belongs to another cache or epoch.
    """
    start, there, their_shape, their_facts = read_header(path)
    theirs = {"values": there, "shape": str(list(their_shape))} | {name: their_facts.get(name) for name in facts}
    ours = {"values": what, "shape": str(list(shape))} | dict(facts)
    other = [f"{name} {theirs[name]} instead of {ours[name]}" for name in ours if theirs[name] != ours[name]]
    if other:
        raise UserError(f"{path} is not this cache's file ({', '.join(other)}): delete it, the next run rewrites it")
    if check:
        check_values(path)
    values: np.ndarray = np.memmap(path, DTYPE, "r", start, their_shape)
    return values


def check_values(path: Path) -> None:
    """Verify the checksum of a file's values and metadata.

    Raises:
        UserError: it does not match.
    """
    start, what, shape, facts = read_header(path)
    expected = facts.pop("sha256")
    digest = hashlib.sha256(_stated(what, shape, facts))
    values = np.memmap(path, np.uint8, "r", start)
    for piece in range(0, len(values), PIECE):
        digest.update(values[piece : piece + PIECE].data)
    if digest.hexdigest() != expected:
        raise _damaged(path, "checksum mismatch")


def _stated(what: str, shape: tuple[int, ...], facts: Facts) -> bytes:
    return json.dumps([what, list(shape), dict(sorted(facts.items()))]).encode()


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is damaged ({reason}): delete it, the next run rewrites it")
