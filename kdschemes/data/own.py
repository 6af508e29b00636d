"""Sources of the user's own images: bytes in memory, pictures of any size, or tensors from the user's transforms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from kdschemes.config.data import OwnData
from kdschemes.data.augment import Augmentation
from kdschemes.data.datasets import Arrays
from kdschemes.data.image_folder import MEAN, STD, Decoder, Request, decode
from kdschemes.data.sources import MemorySource
from kdschemes.data.views import normalize
from kdschemes.errors import UserError, first_line
from kdschemes.seeding import mix64
from kdschemes.storage.own_data import UNLABELLED, OwnImages, as_bytes, own_images, seed_of, seeded

TRAINING = ("train", "val", UNLABELLED)
"""The splits in the "train" array, in their order."""


def open_own(options: OwnData, *, seed: int, device: torch.device) -> MemorySource | OwnSource:
    """Return the source of the images that `options.name` makes.

    Raises:
        UserError: see `own_images`; or mean or std do not fit the channels; or floats would be changed like bytes.
    """
    own = own_images(options)
    for key in ("mean", "std"):
        values = getattr(options, key)
        if values is not None and len(values) != own.channels:
            raise UserError(f"data.{key} has {len(values)} values, but the images have {own.channels} channels")
    if own.kind != "pixels":
        return OwnSource(own, options, seed=seed, device=device)
    pixels = {name: torch.from_numpy(split.pixels) for name, split in own.splits.items()}
    labels = {name: torch.from_numpy(split.labels) for name, split in own.splits.items()}
    mean, std = _statistics(pixels["train"])
    if len(pixels) > 2:
        pixels["train"] = torch.cat([pixels[name] for name in TRAINING if name in pixels])
    arrays = Arrays(
        *(pixels["train"], _train_labels(labels), pixels["test"], labels["test"], own.classes),
        mean=tuple(options.mean or mean),
        std=tuple(options.std or std),
    )
    padding = options.crop_padding if options.crop_padding is not None else own.image_size // 8
    source = MemorySource(
        arrays,
        flip=options.flip,
        crop_padding=padding,
        seed=seed,
        device=device,
        augment=Augmentation.of(options),
    )
    source.digest, source.validation, source.notes = own.digest, _validation(labels), own.notes
    return source


class OwnSource:
    """Images that are asked for one by one, by worker processes: pictures, or tensors.

    Pictures are decoded, cropped and flipped as those of an image folder. Tensors are taken as they are: each is made
    with the generators of torch, NumPy and Python seeded by (seed, epoch, position, view); those of evaluation by the
    position alone.
    """

    kept = 1.0

    def __init__(self, own: OwnImages, options: OwnData, *, seed: int, device: torch.device) -> None:
        labels = {name: torch.from_numpy(split.labels) for name, split in own.splits.items()}
        self.labels = {"train": _train_labels(labels), "test": labels["test"]}
        self.classes, self.channels, self.image_size = own.classes, own.channels, own.image_size
        self.digest, self.notes, self.validation = own.digest, own.notes, _validation(labels)
        self.workers, self.device = options.num_workers, device
        self.mean = tuple(options.mean) if options.mean is not None else None
        self.std = tuple(options.std) if options.std is not None else None
        self.decoder: Dataset[Any]
        if own.kind == "pictures":
            self.mean, self.std = self.mean or MEAN, self.std or STD
            self.decoder = _Pictures(own, options, seed)
            self.kept = self.decoder.kept
        else:
            if Augmentation.of(options):
                raise UserError(
                    f"the images of data {options.name} are floats, and data.auto_augment and data.color_jitter change "
                    "bytes: remove these keys and augment in your transforms, or give bytes or Pillow images"
                )
            self.decoder = _Tensors(own, seed)

    def views(
        self, epoch: int, batches: Iterable[Int[Tensor, " _"]], number: int = 0
    ) -> Iterator[Float[Tensor, "_ c h w"]]:
        """Yield the views of batches of training positions; `number` is the view within the epoch."""
        return self._images((number, epoch, batch.tolist()) for batch in batches)

    def plain(self, array: str, batches: Iterable[Int[Tensor, " _"]]) -> Iterator[Float[Tensor, "_ c h w"]]:
        """Yield batches of positions of "train" or "test"."""
        return self._images((array, 0, batch.tolist()) for batch in batches)

    def _images(self, requests: Iterator[Request]) -> Iterator[Float[Tensor, "_ c h w"]]:
        for images in decode(self.decoder, requests, self.workers, self.device):
            if images.dtype == torch.uint8:
                assert self.mean is not None
                assert self.std is not None
                yield normalize(images, self.mean, self.std)
            else:
                yield images


class _Pictures(Decoder):
    """Decodes the user's Pillow images, made with seeded generators."""

    def __init__(self, own: OwnImages, options: OwnData, seed: int) -> None:
        super().__init__(own.image_size, options, seed, {})
        self.own = own

    def read(self, array: str, position: int) -> Image.Image:
        """Return an image as RGB."""
        pixels = as_bytes(_item(self.own, array, position, seed_of("plain", position)))
        return Image.fromarray(np.ascontiguousarray(np.broadcast_to(pixels.transpose(1, 2, 0), (*pixels.shape[1:], 3))))


class _Tensors(Dataset[Any]):
    """Maps a request to the user's tensors; runs in workers. An error is returned, not raised, as by `Decoder`."""

    def __init__(self, own: OwnImages, seed: int) -> None:
        self.own, self.seed = own, seed

    def __getitem__(self, request: Request) -> Tensor | UserError:
        kind, epoch, positions = request
        shape = (self.own.channels, self.own.image_size, self.own.image_size)
        if not positions:
            return torch.zeros(0, *shape)
        array, random = ("train", True) if isinstance(kind, int) else (kind, False)
        try:
            made = []
            for position in positions:
                seed = mix64(self.seed, epoch, position, int(kind)) >> 1 if random else seed_of("plain", position)
                image = torch.as_tensor(np.asarray(_item(self.own, array, position, seed)), dtype=torch.float32)
                if image.shape != shape:
                    found, wanted = ("x".join(map(str, each)) for each in (image.shape, shape))
                    raise UserError(
                        f"image {position} of {array} is {found}, and the first is {wanted}: make all the same"
                    )
                made.append(image)
            return torch.stack(made)
        except UserError as error:
            return error


def _item(own: OwnImages, array: str, position: int, seed: int) -> Any:
    """Return an image of an array, made with seeded generators; "train" has the splits in `TRAINING`."""
    name = array
    for split in TRAINING if array == "train" else ():
        if split in own.splits:
            name = split
            if position < len(own.splits[split].labels):
                break
            position -= len(own.splits[split].labels)
    chosen = own.splits[name]
    if chosen.item is None:  # of one size, but other splits are not
        assert chosen.pixels is not None
        return chosen.pixels[position]
    try:
        with seeded(seed):
            return chosen.item(position)
    except UserError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"image {position} of {name} cannot be made ({why})") from error


def _train_labels(labels: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([labels[name] for name in TRAINING if name in labels])


def _validation(labels: Mapping[str, Tensor]) -> Tensor | None:
    count = len(labels["train"])
    return torch.arange(count, count + len(labels["val"])) if "val" in labels else None


def _statistics(pixels: Tensor) -> tuple[list[float], list[float]]:
    """Return the mean and standard deviation of the training pixels per channel, scaled to 0..1."""
    total, squares = torch.zeros(pixels.shape[1]).double(), torch.zeros(pixels.shape[1]).double()
    for part in torch.split(pixels, 1024):
        values = part.double() / 255
        total, squares = total + values.sum((0, 2, 3)), squares + values.square().sum((0, 2, 3))
    mean = total / (pixels.numel() / pixels.shape[1])
    std = (squares / (pixels.numel() / pixels.shape[1]) - mean.square()).clamp(min=0).sqrt().clamp(min=1e-3)
    return [round(value, 4) for value in mean.tolist()], [round(value, 4) for value in std.tolist()]
