"""Download files and read them with integrity checks."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import shutil
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from filelock import FileLock
from jaxtyping import UInt8

from kdschemes.errors import UserError

PATIENCE = 30.0  # download timeout in seconds


def md5(path: Path) -> str:
    """Return the MD5 sum of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def damaged(folder: Path, sums: Mapping[str, str]) -> list[str]:
    """Return the problems with the files in `folder`, given their MD5 sums by name; empty if all are intact."""
    faults = []
    for name, expected in sums.items():
        path = folder / name
        if not path.is_file():
            faults.append(f"{path} is missing")
        elif md5(path) != expected:
            faults.append(f"{path} is damaged or incomplete")
    return faults


@contextmanager
def writing(root: Path) -> Iterator[None]:
    """Let one process at a time write to `root`, which is created if missing."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / ".download.lock")
        lock.acquire()
    except OSError as error:
        raise UserError(f"cannot write to {root} ({error}): set data.root to a writable folder") from error
    try:
        yield
    finally:
        lock.release()


def fetch(url: str, path: Path, expected: str) -> None:
    """Download `url` to `path` atomically, unless a file with this MD5 sum is already there.

    Raises:
        UserError: the download fails, or its contents are not as expected.
    """
    if path.is_file() and md5(path) == expected:
        return
    part = path.with_name(path.name + ".part")
    by_hand = f"check the network, or put {path.name} into {path.parent} manually"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        request = urllib.request.Request(url, headers={"User-Agent": "kdschemes"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer, part.open("wb") as stream:
            shutil.copyfileobj(answer, stream)
        whole = md5(part) == expected
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        part.unlink(missing_ok=True)
        raise UserError(f"cannot download {url} to {path.parent} ({error}): {by_hand}") from error
    if not whole:
        part.unlink()
        raise UserError(f"the download of {url} to {path.parent} is incomplete or altered (MD5 differs): {by_hand}")
    part.replace(path)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a verified tar archive into `folder`.

    Raises:
        UserError: the disk is full, or the folder is not writable.
    """
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    except (OSError, tarfile.TarError) as error:
        raise UserError(
            f"cannot unpack {archive} ({error}): free some space, or set data.root to another folder"
        ) from error


def read_idx(path: Path, shape: tuple[int, ...], expected: str | None = None) -> UInt8[np.ndarray, "..."]:
    """Read bytes in MNIST's idx format, plain or gzip-compressed; at most one byte more than `shape` has is unpacked.

    `expected` is the MD5 sum of the uncompressed file.

    Raises:
        UserError: not idx, a shape other than `shape`, truncated, damaged, or not the `expected` file.
    """
    cure = "delete it and rerun to download it again, or put an intact copy there"
    start = 4 + 4 * len(shape)
    size = start + int(np.prod(shape))
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            data = stream.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is damaged or incomplete ({error}): {cure}") from error
    if data[:4] != bytes((0, 0, 8, len(shape))):
        raise UserError(f"{path} is not an idx file of bytes with {len(shape)} dimension(s): {cure}")
    found = tuple(np.frombuffer(data[4:start], ">u4").tolist()) if len(data) >= start else ()
    if found != shape or len(data) != size:
        bytes_there = f"{max(len(data) - start, 0)} bytes" if len(data) <= size else "more bytes than that"
        raise UserError(
            f"{path} is incomplete or from another data set (expected {shape}; shape {found}, {bytes_there}): {cure}"
        )
    if expected is not None and hashlib.md5(data, usedforsecurity=False).hexdigest() != expected:
        raise UserError(f"{path} is damaged or from another data set (MD5 of its contents differs): {cure}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy()
