"""A small folder of images that a network learns in seconds: each class has its own color."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES, SIDE = 4, 16
TRAIN, TEST = 24, 4
"""Images of each class."""


def image_folder(out: Path) -> Path:
    """Return the folder `images` in `out`, made if it is not there: noisy squares in the layout of `image_folder`."""
    root = out / "images"
    if not root.exists():
        partial = out / "images.partial"
        shutil.rmtree(partial, ignore_errors=True)
        generator = np.random.default_rng(0)
        for split, count in (("train", TRAIN), ("test", TEST)):
            for label in range(CLASSES):
                folder = partial / split / f"class{label}"
                folder.mkdir(parents=True)
                color = np.array([40 + 60 * label, 220 - 60 * label, 128])
                for number in range(count):
                    pixels = color + generator.normal(0, 40, (SIDE, SIDE, 3))
                    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
        partial.rename(root)
    return root


def small_data(out: Path) -> list[str]:
    """Return the keys of runs on these images; they are decoded in the run's own process, on one thread."""
    return [
        *("data=image_folder", f"data.root={image_folder(out)}", f"data.image_size={SIDE}", "data.num_workers=0"),
        *("data.min_scale=0.5", "train.batch_size=16", "train.num_threads=1", "optim.clip_grad_norm=5"),
    ]
