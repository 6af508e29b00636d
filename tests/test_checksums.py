"""Checksums in files: intact files pass, every flipped bit of their content is found."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from kdschemes.checksums import (
    json_is_intact,
    json_with_checksum,
    safetensors_is_intact,
    safetensors_with_checksum,
    text_is_intact,
    text_with_checksum,
)

RESULTS = {"top1": 71.25, "names": ["a", "b"], "none": None, "small": 1e-300}


def flips(content: bytes, number: int = 200) -> list[bytes]:
    """Return copies of a file with one flipped bit each."""
    generator, found = random.Random(0), []
    for _ in range(number):
        copy = bytearray(content)
        copy[generator.randrange(len(copy))] ^= 1 << generator.randrange(8)
        found.append(bytes(copy))
    return found


def test_json() -> None:
    content = json_with_checksum(RESULTS)
    assert {key: value for key, value in json.loads(content).items() if key != "sha256"} == RESULTS
    assert json_is_intact(json.loads(content))
    assert json_is_intact(RESULTS), "a file without a checksum"
    missed = 0
    for flipped in flips(content):
        try:
            found = json.loads(flipped)
        except ValueError:
            continue
        kept = {key: value for key, value in found.items() if key in RESULTS}
        missed += json_is_intact(found) and kept != RESULTS
    assert missed == 0


def test_text() -> None:
    text = "a: 1\nb: [x, y]\n"
    content = text_with_checksum(text)
    assert content.endswith(text)
    assert text_is_intact(content)
    assert text_is_intact(text), "a file without a checksum"
    assert not text_is_intact(content.replace("1", "3", 1))
    assert not text_is_intact(content + "c: 3\n")
    assert not any(text_is_intact(content[:length]) for length in range(40, len(content)))


def test_safetensors(tmp_path: Path) -> None:
    tensors = {"w": np.arange(60, dtype=np.float32), "b": np.ones((2, 3), np.int16), "empty": np.zeros((0, 4))}
    plain = save(tensors, metadata={"format": "pt"})
    content = safetensors_with_checksum(plain)
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    assert safetensors_is_intact(path)
    assert all(np.array_equal(load(content)[name], value) for name, value in tensors.items())
    for flipped in flips(content):
        path.write_bytes(flipped)
        try:
            found = load(flipped)
        except Exception:
            continue
        same = found.keys() == tensors.keys() and all(np.array_equal(found[n], v) for n, v in tensors.items())
        assert same or not safetensors_is_intact(path)
    path.write_bytes(plain)
    assert safetensors_is_intact(path), "a file without a checksum"
    path.write_bytes(safetensors_with_checksum(save(tensors)))
    assert safetensors_is_intact(path), "a file without other metadata"


@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
def test_a_flipped_value_is_found(tmp_path: Path, part: float) -> None:
    content = bytearray(safetensors_with_checksum(save({"w": np.arange(5000, dtype=np.float32)})))
    content[int(part * len(content))] ^= 1
    (tmp_path / "a").write_bytes(content)
    assert not safetensors_is_intact(tmp_path / "a")
