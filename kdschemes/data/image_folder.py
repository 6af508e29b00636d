"""Images of any size in one folder per class, decoded on demand by worker processes.

Layout: `root/train/<class>/*` and `root/test/<class>/*`; `root/val/<class>/*`, if there, is the validation split, or
without `test` the test set. Images can be in subfolders (`train/<class>/images/*`).
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence

import torch
from jaxtyping import Float, Int, UInt8
from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdschemes.config.data import ImageFolder, OwnData
from kdschemes.data import workers
from kdschemes.data.augment import Augmentation
from kdschemes.data.views import Stream, normalize, view_seed
from kdschemes.errors import UserError, first_line
from kdschemes.seeding import mix64
from kdschemes.storage.class_folders import list_root, list_unlabelled

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF")
"""What is decoded, whatever the file's name says: formats that Pillow reads without starting another program."""

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by its EXIF orientation."""

MEAN: tuple[float, ...] = (0.485, 0.456, 0.406)

STD: tuple[float, ...] = (0.229, 0.224, 0.225)

KEPT = 0.875
"""The side of the center crop as a fraction of the resized image's shorter side: 224 of 256 pixels."""

Request = tuple[int | str, int, list[int]]


def read_image(path: str) -> Image.Image:
    """Decode an image as RGB, turned upright by its EXIF orientation: grayscale is repeated, transparency dropped.

    Raises:
        UserError: the file is missing, damaged, not an image, or has more than 8 bits per channel.
    """
    try:
        with (
            warnings.catch_warnings(action="ignore", category=UserWarning),  # of damaged metadata
            Image.open(path, formats=FORMATS) as image,
        ):
            if (bits := _bits_per_channel(image)) > 8:
                raise UserError(f"{path} has {bits} bits per channel: convert it to 8 bits")
            decoded = image.convert("RGBA" if "transparency" in image.info else "RGB").convert("RGB")
            orientation = _orientation(image)
            return decoded.transpose(TURNS[orientation]) if orientation in TURNS else decoded
    except UserError:
        raise
    except Exception as error:  # a damaged file can make its reader fail in any way
        raise UserError(f"cannot read the image {path} ({first_line(error)}): replace or remove the file") from error


def _bits_per_channel(image: Image.Image) -> int:
    """Return the bits per channel of an image that is open, not yet decoded: Pillow reduces colors to 8 bits."""
    stored = image.tile[0].args if isinstance(image, ImageFile) and image.tile else ""
    if isinstance(image, TiffImageFile):
        return int(max(image.tag_v2.get(BITSPERSAMPLE, (1,))))
    if image.format == "PPM" and isinstance(stored, tuple):  # (mode, largest value)
        return int(stored[1]).bit_length()
    return 16 if image.mode.startswith(("I", "F")) or (image.format == "PNG" and ";16" in str(stored)) else 8


def _orientation(image: Image.Image) -> int | None:
    """Return the EXIF orientation of a decoded image; None if it has none, or one that cannot be read."""
    try:
        orientation: int | None = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged metadata can make its reader fail in any way; the pixels are intact
        return None
    return orientation


class Decoder(Dataset[UInt8[Tensor, "n 3 h w"] | UserError]):
    """Maps a request (number of the random view or name of an array, epoch, positions) to bytes; runs in workers.

    An error is returned, not raised, because the loader would wrap it in a long traceback.
    """

    kept = KEPT

    def __init__(self, size: int, options: ImageFolder | OwnData, seed: int, paths: dict[str, list[str]]) -> None:
        self.paths, self.seed, self.size, self.augment = paths, seed, size, Augmentation.of(options)
        enlarged = round(size / KEPT)
        from torchvision.transforms import v2  # a slow import that other data sets do not need

        flips = [v2.RandomHorizontalFlip()] if options.flip else []
        self.random = v2.Compose(
            [v2.RandomResizedCrop(size, scale=(options.min_scale, 1.0), antialias=True), *flips, v2.PILToTensor()]
        )
        self.plain = v2.Compose([v2.Resize(enlarged, antialias=True), v2.CenterCrop(size), v2.PILToTensor()])

    def read(self, array: str, position: int) -> Image.Image:
        """Return an image as RGB."""
        return read_image(self.paths[array][position])

    def view(self, epoch: int, position: int, number: int = 0) -> UInt8[Tensor, "3 h w"]:
        """Return a view of a training image; torch's generator is seeded for it and restored."""
        image = self.read("train", position)
        with torch.random.fork_rng(devices=[]):
            seed = view_seed(self.seed, number)
            torch.default_generator.manual_seed(mix64(seed, epoch, Stream.DECODE, position))
            pixels: Tensor = self.random(image)
        return pixels

    def __getitem__(self, request: Request) -> UInt8[Tensor, "n 3 h w"] | UserError:
        kind, epoch, positions = request
        if not positions:
            return torch.zeros(0, 3, self.size, self.size, dtype=torch.uint8)
        try:
            if isinstance(kind, int):
                images = torch.stack([self.view(epoch, position, kind) for position in positions])
                return self.augment(images, torch.tensor(positions), seed=view_seed(self.seed, kind), epoch=epoch)
            return torch.stack([self.plain(self.read(kind, position)) for position in positions])
        except UserError as error:
            return error


def decode(
    decoder: Dataset[Tensor | UserError], requests: Iterator[Request], processes: int, device: torch.device
) -> Iterator[Tensor]:
    """Yield what a decoder returns for requests, on the device; worker processes decode, if there are any.

    Raises:
        UserError: an image cannot be read, or a worker died.
    """
    loader = DataLoader(
        decoder,
        batch_size=None,
        sampler=requests,
        num_workers=processes,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # otherwise the loader uses the global generator
        worker_init_fn=workers.obey_parent,
    )
    for images in workers.load(loader):
        if isinstance(images, UserError):
            raise images
        yield images.to(device, non_blocking=True)


def _flat(images: Sequence[Sequence[str]]) -> tuple[list[str], Int[Tensor, " n"]]:
    """Return the paths of all classes, one class after another, and their labels."""
    sizes = torch.tensor([len(paths) for paths in images], dtype=torch.long)
    return [path for paths in images for path in paths], torch.arange(len(images)).repeat_interleave(sizes)


class FolderSource:
    """Images from a folder, resized, cropped and flipped by workers and normalized on the device.

    The images of `val/` follow those of `train/` in the "train" array, then those of `data.unlabelled`, with label -1;
    `validation` is the positions of `val/`, None without a validation split of its own. `notes` are lines for the user.
    """

    channels, kept = 3, KEPT
    validation: Int[Tensor, " val"] | None = None

    def __init__(self, options: ImageFolder, *, seed: int, device: torch.device) -> None:
        listing = list_root(options.root)
        root, images, self.classes, self.digest = listing.root, listing.images, listing.classes, listing.digest
        self.notes = list(listing.notes)
        if options.classes not in (None, len(self.classes)):
            raise UserError(
                f"data.classes={options.classes}, but {root / 'train'} has {len(self.classes)} class folders: "
                "correct one of them"
            )
        self.image_size, self.device = options.image_size, device
        (train, train_labels), (val, val_labels) = _flat(images["train"]), _flat(images.get("val", []))
        test, test_labels = _flat(images["test"])
        if val:
            self.validation = torch.arange(len(train), len(train) + len(val))
            self.notes.append(
                f"{root / 'val'} is the validation split, {len(val):,} images: data.val_fraction has no effect"
            )
        self.notes += [
            f"{root / name} is not used: rename it to val to validate on it"
            for name in ("valid", "validation")
            if not os.path.isdir(root / "val") and os.path.isdir(root / name)
        ]
        more: list[str] = []
        if options.unlabelled is not None:
            more, digest = list_unlabelled(options.unlabelled)
            self.digest = hashlib.sha256(f"{self.digest} {digest}".encode()).hexdigest()
        unknown = torch.full((len(more),), -1)
        self.labels = {"train": torch.cat([train_labels, val_labels, unknown]), "test": test_labels}
        self.mean, self.std = tuple(options.mean or MEAN), tuple(options.std or STD)
        self.decoder = Decoder(options.image_size, options, seed, {"train": train + val + more, "test": test})
        self.workers = options.num_workers

    def views(
        self, epoch: int, batches: Iterable[Int[Tensor, " _"]], number: int = 0
    ) -> Iterator[Float[Tensor, "_ 3 h w"]]:
        """Yield the random views of batches of training positions; `number` is the view within the epoch."""
        return self._decode((number, epoch, batch.tolist()) for batch in batches)

    def plain(self, array: str, batches: Iterable[Int[Tensor, " _"]]) -> Iterator[Float[Tensor, "_ 3 h w"]]:
        """Yield batches of positions of "train" or "test", resized and center-cropped."""
        return self._decode((array, 0, batch.tolist()) for batch in batches)

    def _decode(self, requests: Iterator[Request]) -> Iterator[Float[Tensor, "_ 3 h w"]]:
        for pixels in decode(self.decoder, requests, self.workers, self.device):
            yield normalize(pixels, self.mean, self.std)
