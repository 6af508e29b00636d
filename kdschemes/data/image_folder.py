"""Images of any size in one folder per class, decoded on demand by worker processes.

Layout: `root/train/<class>/*` and `root/test/<class>/*`; without `test`, `root/val` is the test set. The validation
split is always held out from `train`. Images can be in subfolders (`train/<class>/images/*`); hidden files and files
without an image extension are ignored.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdschemes.config.data import ImageFolder
from kdschemes.data.views import Stream, normalize, view_seed
from kdschemes.errors import UserError
from kdschemes.seeding import mix64

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")

MEAN: tuple[float, ...] = (0.485, 0.456, 0.406)

STD: tuple[float, ...] = (0.229, 0.224, 0.225)

KEPT = 0.875
"""The side of the center crop as a fraction of the resized image's shorter side: 224 of 256 pixels."""

Request = tuple[int | str, int, list[int]]


def list_images(folder: Path) -> tuple[list[str], list[list[str]]]:
    """Return the sorted names of the class folders and, for each, the sorted paths of its images.

    Raises:
        UserError: no such folder, no class folders in it, or a class without images.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: data.root needs train/ and test/ (or val/), one folder per class")
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if classes == ["images"]:
        raise UserError(
            f"{folder} has all images in images/, like Tiny-ImageNet's val and test: move each into "
            f"{folder}/<class>/ (val_annotations.txt lists the classes; images without labels cannot be used)"
        )
    if not classes:
        raise UserError(f"{folder} has no class folders: put the images of each class into {folder}/<class>/")
    paths = []
    for name in classes:
        found = sorted(
            os.path.join(parent, file)
            for parent, _, files in os.walk(folder / name, followlinks=True)
            for file in files
            if file.lower().endswith(EXTENSIONS) and not file.startswith(".")
        )
        if not found:
            raise UserError(
                f"{folder / name} has no images ({', '.join(EXTENSIONS)}): add images, or remove the folder"
            )
        paths.append(found)
    return classes, paths


def read_image(path: str) -> Image.Image:
    """Decode an image as RGB: grayscale is repeated, transparency dropped.

    Raises:
        UserError: the file is missing, damaged, not an image, or has more than 8 bits per channel.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise UserError(f"{path} has more than 8 bits per channel (mode {image.mode}): convert it to 8 bits")
            return image.convert("RGBA" if "transparency" in image.info else "RGB").convert("RGB")
    except UserError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"cannot read the image {path} ({reason}): replace or remove the file") from error


class Decoder(Dataset[UInt8[Tensor, "n 3 h w"] | UserError]):
    """Maps a request (number of the random view or name of an array, epoch, positions) to bytes; runs in workers.

    An error is returned, not raised, because the loader would wrap it in a long traceback.
    """

    def __init__(self, options: ImageFolder, seed: int, paths: dict[str, list[str]]) -> None:
        self.paths, self.seed, self.size = paths, seed, options.image_size
        size, enlarged = options.image_size, round(options.image_size / KEPT)
        from torchvision.transforms import v2  # a slow import that other data sets do not need

        flip = [v2.RandomHorizontalFlip()] if options.flip else []
        self.random = v2.Compose(
            [v2.RandomResizedCrop(size, scale=(options.min_scale, 1.0), antialias=True), *flip, v2.PILToTensor()]
        )
        self.plain = v2.Compose([v2.Resize(enlarged, antialias=True), v2.CenterCrop(size), v2.PILToTensor()])

    def view(self, epoch: int, position: int, number: int = 0) -> UInt8[Tensor, "3 h w"]:
        """Return a view of a training image; torch's generator is seeded for it and restored."""
        image = read_image(self.paths["train"][position])
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
                return torch.stack([self.view(epoch, position, kind) for position in positions])
            return torch.stack([self.plain(read_image(self.paths[kind][position])) for position in positions])
        except UserError as error:
            return error


class FolderSource:
    """Images from a folder, resized, cropped and flipped by workers and normalized on the device."""

    channels, kept = 3, KEPT
    mean, std = MEAN, STD

    def __init__(self, options: ImageFolder, *, seed: int, device: torch.device) -> None:
        if options.root is None:
            raise UserError("data.root is missing: set it to the folder with train/ and test/ (or val/)")
        root = Path(options.root).expanduser()
        tested = root / "test" if (root / "test").is_dir() else root / "val"
        self.classes, train = list_images(root / "train")
        test_classes, test = list_images(tested)
        if odd := sorted(set(self.classes) ^ set(test_classes)):
            raise UserError(
                f"{root / 'train'} has {len(self.classes)} classes and {tested} {len(test_classes)}; only in one of "
                f"them: {', '.join(odd[:3])}{', ...' if len(odd) > 3 else ''}: both need the same class folders"
            )
        if options.classes not in (None, len(self.classes)):
            raise UserError(
                f"data.classes={options.classes}, but {root / 'train'} has {len(self.classes)} class folders: "
                "correct one of them"
            )
        self.image_size, self.device = options.image_size, device
        self.labels = {
            name: torch.repeat_interleave(torch.arange(len(paths)), torch.tensor([len(files) for files in paths]))
            for name, paths in (("train", train), ("test", test))
        }
        flat = {"train": [p for files in train for p in files], "test": [p for files in test for p in files]}
        self.decoder, self.workers = Decoder(options, seed, flat), options.num_workers

    def views(
        self, epoch: int, batches: Iterable[Int[Tensor, " _"]], number: int = 0
    ) -> Iterator[Float[Tensor, "_ 3 h w"]]:
        """Yield the random views of batches of training positions; `number` is the view within the epoch."""
        return self._decode((number, epoch, batch.tolist()) for batch in batches)

    def plain(self, array: str, batches: Iterable[Int[Tensor, " _"]]) -> Iterator[Float[Tensor, "_ 3 h w"]]:
        """Yield batches of positions of "train" or "test", resized and center-cropped."""
        return self._decode((array, 0, batch.tolist()) for batch in batches)

    def _decode(self, requests: Iterator[Request]) -> Iterator[Float[Tensor, "_ 3 h w"]]:
        loader = DataLoader(
            self.decoder,
            batch_size=None,
            sampler=requests,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # otherwise the loader uses the global generator
        )
        for pixels in loader:
            if isinstance(pixels, UserError):
                raise pixels
            yield normalize(pixels.to(self.device, non_blocking=True), self.mean, self.std)
