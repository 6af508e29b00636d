"""A small folder of images on the disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_images(root: Path, each: int, side: int = 8) -> None:
    """Write `each` noisy gray images of `side` pixels for each of two classes, for training and for the test."""
    for part in ("train", "test"):
        for number in range(2 * each):
            path = root / part / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng([number, part == "test"]).integers(0, 200, (side, side), np.uint8)
            Image.fromarray(noise + np.uint8(50 * (number % 2))).save(path)
