"""Sources of images for the loader."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kdschemes.data import views
from kdschemes.data.augment import Augmentation
from kdschemes.data.datasets import Arrays
from kdschemes.data.views import Stream
from kdschemes.seeding import integers, uniform


@runtime_checkable
class Source(Protocol):
    """Images by position in the "train" or "test" array. Positions are on the CPU, images on the device.

    `digest` identifies the labels in their order, and for files their names and sizes.
    Pixels scaled to 0..1 are normalized by `mean` and `std`. Without augmentation, images are resized to
    `round(image_size / kept)` pixels, then cropped to their center.
    """

    classes: list[str]
    channels: int
    image_size: int
    kept: float
    labels: dict[str, Tensor]
    digest: str

    @property
    def mean(self) -> tuple[float, ...] | None:
        """The mean per channel; None: unknown."""

    @property
    def std(self) -> tuple[float, ...] | None:
        """The standard deviation per channel; None: unknown."""

    def views(
        self, epoch: int, batches: Iterable[Int[Tensor, " _"]], number: int = 0
    ) -> Iterator[Float[Tensor, "_ c h w"]]:
        """Yield normalized random views of batches of training positions; `number` is the view within the epoch."""

    def plain(self, array: str, batches: Iterable[Int[Tensor, " _"]]) -> Iterator[Float[Tensor, "_ c h w"]]:
        """Yield batches of positions of one array, normalized without augmentation."""


def labels_digest(labels: Mapping[str, Tensor]) -> str:
    """Return the digest of each array's labels."""
    digest = hashlib.sha256()
    for name, values in labels.items():
        digest.update(f"{name} {len(values)}\n".encode())
        digest.update(values.to(torch.int32).numpy().tobytes())
    return digest.hexdigest()


class MemorySource:
    """Images stored on the device as bytes, the training images padded.

    `validation` are the positions of a validation split of its own, after those of the training images in "train"; None
    without one. `notes` are lines for the user.
    """

    kept = 1.0
    validation: Int[Tensor, " val"] | None = None

    def __init__(
        self,
        arrays: Arrays,
        *,
        flip: bool,
        crop_padding: int,
        seed: int,
        device: torch.device,
        augment: Augmentation,
    ) -> None:
        self.notes: list[str] = []
        self.classes, self.labels = arrays.classes, {"train": arrays.train_labels, "test": arrays.test_labels}
        self.digest = labels_digest(self.labels)
        self.channels, self.image_size = arrays.train_images.shape[1:3]
        self.mean, self.std = arrays.mean, arrays.std
        self.flip, self.seed, self.device, self.augment = flip, seed, device, augment
        self.padding = {"train": crop_padding, "test": 0}
        border = (crop_padding,) * 4
        self.images = {
            "train": torch.nn.functional.pad(arrays.train_images.to(device), border),
            "test": arrays.test_images.to(device).contiguous(),
        }

    def views(
        self, epoch: int, batches: Iterable[Int[Tensor, " _"]], number: int = 0
    ) -> Iterator[Float[Tensor, "_ c h w"]]:
        """Yield the random views of batches of training positions: padded, cropped, flipped, changed, normalized."""
        offsets = 2 * self.padding["train"] + 1
        seed = views.view_seed(self.seed, number)
        for batch in batches:
            index = batch.to(self.device)
            row = integers(seed, epoch, index, Stream.ROW, offsets)
            column = integers(seed, epoch, index, Stream.COLUMN, offsets)
            flip = uniform(seed, epoch, index, Stream.FLIP) < (0.5 if self.flip else 0.0)
            pixels = self._cut("train", index, row, column, flip)
            yield views.normalize(self.augment(pixels, batch, seed=seed, epoch=epoch), self.mean, self.std)

    def plain(self, array: str, batches: Iterable[Int[Tensor, " _"]]) -> Iterator[Float[Tensor, "_ c h w"]]:
        """Yield batches of positions of "train" or "test", normalized without augmentation."""
        for batch in batches:
            index = batch.to(self.device)
            corner = torch.full_like(index, self.padding[array])
            pixels = self._cut(array, index, corner, corner, torch.zeros_like(index, dtype=torch.bool))
            yield views.normalize(pixels, self.mean, self.std)

    def _cut(self, array: str, index: Tensor, row: Tensor, column: Tensor, flip: Tensor) -> Tensor:
        return views.crop(self.images[array], index, row, column, flip, self.image_size)
