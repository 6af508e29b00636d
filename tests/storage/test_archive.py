"""Archives of torch.save: any flipped bit is found, nothing is unpacked beyond the file's size."""

from __future__ import annotations

import random
import zipfile
from pathlib import Path

import pytest
import torch

from kdschemes.errors import UserError
from kdschemes.storage.archive import check_archive


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "weights.pt"
    torch.save({"a": torch.randn(64, 64), "b": {"c": torch.arange(100)}, "n": 3}, path)
    return path


def refused(path: Path, *parts: str) -> None:
    with pytest.raises(UserError) as error:
        check_archive(path)
    message = str(error.value)
    assert str(path) in message
    assert message.isprintable()
    assert all(part in message for part in parts), message


def test_an_intact_file_passes(saved: Path) -> None:
    check_archive(saved)


def test_every_flipped_bit_of_a_member_is_found(saved: Path) -> None:
    whole = saved.read_bytes()
    with zipfile.ZipFile(saved) as archive:
        (member,) = (m for m in archive.infolist() if m.filename.endswith("data/0"))
    first = whole.index(torch.load(saved)["a"].numpy().tobytes())
    generator = random.Random(0)
    for _ in range(60):
        place = first + generator.randrange(member.file_size)
        flipped = bytearray(whole)
        flipped[place] ^= 1 << generator.randrange(8)
        saved.write_bytes(flipped)
        torch.load(saved, weights_only=True)  # notices nothing
        refused(saved, "is damaged or incomplete", "data/0' does not match its checksum")


@pytest.mark.parametrize("length", [0, 1, 30, 5000, -1, -30])
def test_a_cut_file_is_refused(saved: Path, length: int) -> None:
    saved.write_bytes(saved.read_bytes()[:length])
    refused(saved, "is damaged or incomplete")


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    refused(tmp_path / "none.pt", "No such file")
    refused(tmp_path, "Is a directory")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_members_are_refused_before_they_are_read(tmp_path: Path, method: int) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("bomb/data.pkl", b"\x80\x02}.")
        archive.writestr("bomb/data/\x1b[31m0", bytes(20_000_000))
    assert path.stat().st_size < 100_000
    refused(path, "contains compressed data ('bomb/data", "torch.save")


def test_overlapping_members_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "overlap.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data/0", bytes(10_000))
        archive.filelist += archive.filelist * 50  # one member listed 51 times
    refused(path, "its parts are larger than the file")
