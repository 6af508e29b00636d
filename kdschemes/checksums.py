"""Checksums stored in the files that runs read back, so that a damaged file is never taken for whole.

A file without a checksum, written by another program or an earlier version, is accepted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

KEY = "sha256"
"""Name of the checksum in JSON and in the metadata of safetensors."""

LINE = "sha256 of the lines below: "

PIECE = 1 << 20


def file_checksum(path: Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_with_checksum(data: Mapping[str, Any]) -> bytes:
    """Return `data` as JSON with its checksum as the last key."""
    return (json.dumps({**data, KEY: _of_json(data)}, indent=2, allow_nan=False) + "\n").encode()


def json_is_intact(data: Mapping[str, Any]) -> bool:
    """Return whether parsed JSON has the content that its checksum was computed from."""
    return KEY not in data or data[KEY] == _of_json({key: value for key, value in data.items() if key != KEY})


def text_with_checksum(text: str) -> str:
    """Return lines of text after a comment line with their checksum."""
    return f"# {LINE}{hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def text_is_intact(text: str) -> bool:
    """Return whether text has the content that its checksum was computed from."""
    return LINE not in text or text == text_with_checksum(text.partition("\n")[2])


def safetensors_with_checksum(data: bytes) -> bytes:
    """Return a safetensors file with a checksum of its tensors and metadata added to its metadata."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    metadata = header.setdefault("__metadata__", {})
    digest = hashlib.sha256(_canonical(header))
    digest.update(memoryview(data)[start:])
    metadata[KEY] = digest.hexdigest()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[start:]


def safetensors_is_intact(path: Path) -> bool:
    """Return whether a readable safetensors file has the content that its checksum was computed from."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        expected = header.setdefault("__metadata__", {}).pop(KEY, None)
        if expected is None:
            return True
        digest = hashlib.sha256(_canonical(header))
        while piece := file.read(PIECE):
            digest.update(piece)
    return bool(digest.hexdigest() == expected)


def _of_json(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(data)).hexdigest()


def _canonical(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, sort_keys=True).encode()
