"""What the tests of data sets share: small archives and a server on the loopback."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from kdschemes.data.datasets import (
    Arrays,
    CifarFiles,
)
from kdschemes.errors import UserError

NOWHERE = "http://127.0.0.1:9/"  # the discard port: nobody listens


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@dataclass(frozen=True)
class Server:
    folder: Path
    url: str
    requests: list[str]


def names(count: int) -> list[str]:
    return [f"c{k}" for k in range(count)]


@dataclass(frozen=True)
class SmallCifar:
    """A CIFAR archive with 40 + 40 training and 20 test images, in the published layout."""

    files: CifarFiles
    archive: bytes
    contents: dict[str, bytes]
    images: np.ndarray
    labels: np.ndarray


def place(small: SmallCifar, root: Path) -> Path:
    folder = root / small.files.folder
    folder.mkdir(parents=True)
    for name, data in small.contents.items():
        (folder / name).write_bytes(data)
    return folder


def assert_whole(small: SmallCifar, arrays: Arrays) -> None:
    assert np.array_equal(arrays.train_images.numpy(), small.images[:80])
    assert np.array_equal(arrays.test_images.numpy(), small.images[80:])
    assert arrays.train_labels.tolist() == small.labels[:80].tolist()
    assert arrays.test_labels.tolist() == small.labels[80:].tolist()
    assert arrays.classes == names(10)
