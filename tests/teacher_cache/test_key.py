"""The images in a cache's key: what they contain counts, not where they are or what they are called."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdschemes.config.data import Digits, ImageFolder
from kdschemes.data import open_data
from kdschemes.errors import UserError
from kdschemes.teacher_cache import key
from kdschemes.teacher_cache.key import images_digest

CPU = torch.device("cpu")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for split, count in (("train", 6), ("test", 2)):
        for k, name in enumerate(("a", "b")):
            for j in range(count):
                path = root / split / name / f"{j}.bmp"  # all files have the same size
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.random.default_rng(100 * k + j).integers(0, 256, (5, 5, 3), np.uint8)
                Image.fromarray(pixels).save(path)
    return root


def digest(root: Path, watched: list[str] | None = None, **changes: object) -> str:
    options = replace(ImageFolder(root=str(root), image_size=4, num_workers=0, val_fraction=0.34), **changes)  # type: ignore[arg-type]
    return images_digest(open_data(options, seed=0, device=CPU), ([] if watched is None else watched).append)


def position(root: Path, split: str) -> Path:
    """Return the file at the first position of a split of the "train" array."""
    data = open_data(ImageFolder(root=str(root), image_size=4, val_fraction=0.34), seed=0, device=CPU)
    return Path(data.source.decoder.paths["train"][int(data.positions[split][0])])  # type: ignore[attr-defined]


def flip_bit(path: Path) -> None:
    """Change a pixel; name, size and time of change stay the same but for a nanosecond."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def test_changed_pixels_are_noticed(root: Path) -> None:
    before = digest(root)
    assert digest(root) == before
    flip_bit(position(root, "train"))
    assert digest(root) != before


def test_images_that_are_not_trained_on_do_not_count(root: Path) -> None:
    before = digest(root)
    flip_bit(position(root, "val"))
    flip_bit(root / "test" / "a" / "0.bmp")
    assert digest(root) == before


def test_places_and_names_do_not_count(root: Path, tmp_path: Path) -> None:
    before = digest(root)
    shutil.copytree(root, tmp_path / "scratch" / "copy")
    assert digest(tmp_path / "scratch" / "copy") == before
    for split in ("train", "test"):
        (root / split / "b").rename(root / split / "boat")
    assert digest(root) == before


def test_two_images_that_change_places_are_noticed(root: Path) -> None:
    before = digest(root, val_fraction=0.0)
    one, two = root / "train" / "a" / "1.bmp", root / "train" / "a" / "2.bmp"
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    assert digest(root, val_fraction=0.0) != before


def test_files_are_read_once_per_process_with_progress(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key, "FILES_AT_ONCE", 3)
    watched: list[str] = []
    before = digest(root, watched, flip=False)
    assert [line.split(" images")[0] for line in watched] == [f"teacher cache: {done} of 8" for done in (0, 3, 6)]
    assert digest(root, watched, flip=True) == before
    assert len(watched) == 3


def test_reading_can_be_stopped_and_a_missing_image_is_named(root: Path) -> None:
    data = open_data(ImageFolder(root=str(root), image_size=4), seed=0, device=CPU)

    def stop(line: str) -> None:
        raise SystemExit(143)

    with pytest.raises(SystemExit):
        images_digest(data, stop)
    position(root, "train").unlink()
    with pytest.raises(UserError, match=r"cannot read the image .*bmp \(No such file or directory\): restore it"):
        images_digest(data, lambda line: None)


def test_images_in_memory_are_identified_by_their_pixels() -> None:
    datas = [open_data(Digits(crop_padding=padding), seed=padding, device=CPU) for padding in (0, 1)]
    first, second = (images_digest(data, lambda line: None) for data in datas)
    assert first == second
    other = open_data(Digits(), seed=0, device=CPU)
    other.source.images["train"][5, 0, 4, 4] += 1  # type: ignore[attr-defined]
    assert images_digest(other, lambda line: None) != first
