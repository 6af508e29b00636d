"""The user's own images: arrays, data sets of (image, label), or data sets of Hugging Face. Torch is not imported here.

They are `pixels` (bytes in memory, all of one size), `pictures` (Pillow images that are decoded when they are used) or
`tensors` (numbers as the user's transforms make them).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdschemes.config.code import GIVEN, code_digest, given, load_code, parse_code, where_raised
from kdschemes.config.data import OwnData
from kdschemes.errors import UserError, first_line, shown

LARGEST = 2 << 30
"""Bytes of images that are kept in memory; more are decoded when they are used."""

SAMPLE = 64
"""Images that identify a split whose images are not in memory."""

UNLABELLED = "unlabelled"
"""The name of the images without labels, whatever key `data.unlabelled` is; it comes last."""

SPLITS = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}

IMAGE_KEYS, LABEL_KEYS = ("image", "img", "images"), ("label", "labels", "fine_label")

FORMS = "it must return train and test, and val if there is one: in a dictionary, or as attributes"

PAIRS = (
    "give a pair (images, labels) of arrays, a data set of (image, label), or a data set of Hugging Face with the "
    "columns image and label"
)


@dataclass(frozen=True)
class Split:
    """The labels of a split, and its images: `pixels` [N, C, H, W], or `item`, a function of the position."""

    labels: NDArray[np.int64]
    pixels: NDArray[np.uint8] | None = None
    item: Callable[[int], Any] | None = None


@dataclass(frozen=True, eq=False)
class OwnImages:
    """The user's images by split; `digest` identifies images and labels, `notes` are lines for the user."""

    kind: str
    splits: Mapping[str, Split]
    classes: list[str]
    channels: int
    image_size: int
    digest: str
    notes: list[str] = field(default_factory=list)

    @property
    def num_classes(self) -> int:
        return len(self.classes)


def own_images(options: OwnData, digest: str = "") -> OwnImages:
    """Return the images that the function `options.name` makes, or that were passed in Python; read once.

    `digest` is how that of the function's code must begin.

    Raises:
        CodeRefused: the user did not allow the code.
        UserError: it fails, or returns something else; or resuming would not see the same images.
    """
    code = parse_code(options.name)
    now = code_digest(code) if code is not None else ""
    key = json.dumps(
        [options.name, now, options.kwargs, options.num_classes, options.image_size, options.unlabelled],
        sort_keys=True,
        default=str,
    )
    if key not in _READ:
        while len(_READ) > 1:
            del _READ[next(iter(_READ))]
        with seeded(0):
            made = _made(options, digest)
        _READ[key] = read_images(made, options)
    return _READ[key]


_READ: dict[str, OwnImages] = {}


def _made(options: OwnData, digest: str) -> Any:
    name, code = options.name, parse_code(options.name)
    if code is None:
        assert name.startswith(GIVEN)
        return given(name, "pass it again, as kdschemes.train(data=...)")
    make = load_code(code, "data", digest)
    if not callable(make):
        return make
    try:
        return make(**options.kwargs or {})
    except UserError:
        raise
    except Exception as error:
        file = getattr(sys.modules.get(getattr(make, "__module__", "")), "__file__", "") or ""
        raise UserError(f"data {name} fails ({where_raised(error, file)})") from error


def read_images(made: Any, options: OwnData) -> OwnImages:
    """Return what the user's object contains; see `own_images`. Random generators are not affected."""
    with seeded(0):
        return _read_images(made, options)


def _read_images(made: Any, options: OwnData) -> OwnImages:
    reader = _Reader(options.name, options.unlabelled)
    found = reader.splits(made)
    kinds = {name: reader.kind(name, split) for name, split in found.items()}
    if len({*kinds.values()}) > 1:
        raise UserError(
            f"data {options.name}: the images of {', '.join(kinds)} are {', '.join(kinds.values())}: use one kind"
        )
    kind = kinds["train"]
    if kind == "pixels":
        found = {name: reader.in_memory(name, split) for name, split in found.items()}
        kind = "pictures" if any(split.pixels is None for split in found.values()) else kind
    channels, size = reader.size(kind, found, options.image_size)
    labels = np.concatenate([split.labels for name, split in found.items() if name != UNLABELLED])
    several = labels.ndim == 2
    if several and UNLABELLED in found:
        raise reader.wrong("images without labels need others with one label each, and these have several")
    if several and options.num_classes not in (None, labels.shape[1]):
        raise reader.wrong(f"labels have {labels.shape[1]} columns, and data.num_classes={options.num_classes}")
    count = options.num_classes or (len(reader.classes) if reader.classes else int(labels.max()) + 1)
    count, largest = (labels.shape[1], 1) if several else (count, count - 1)
    if labels.min() < 0 or labels.max() > largest:
        raise reader.wrong(
            f"labels are {labels.min()} to {labels.max()}, and must be 0 to {largest} for {count} classes "
            "(data.num_classes)"
        )
    classes = reader.classes if len(reader.classes) == count else [str(label) for label in range(count)]
    return OwnImages(kind, found, classes, channels, size, _digest(found, classes), reader.notes)


def seed_of(*words: int | str) -> int:
    """Return a seed for `seeded`: a pure function of words."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, words)).encode()).digest()[:8], "big") >> 1


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run a block with the generators of Python, NumPy and torch seeded; their states are restored afterward."""
    torch = sys.modules.get("torch")
    states = random.getstate(), np.random.get_state(), torch.get_rng_state() if torch is not None else None
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if torch is not None:
        torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        if torch is not None:
            torch.set_rng_state(states[2])


def as_bytes(image: Any) -> NDArray[np.uint8]:
    """Return a Pillow image or bytes as [C, H, W]: gray stays gray, other modes become RGB.

    Raises:
        UserError: the image has more than 8 bits per channel.
    """
    if hasattr(image, "convert"):
        if image.mode.startswith(("I", "F")):  # Pillow would cut off what is above 255
            raise UserError(f"an image of mode {image.mode} has more than 8 bits per channel: convert it to 8 bits")
        array = np.asarray(image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB"))
        return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1) if _last_channels(array.shape) else array


def _last_channels(shape: Sequence[int]) -> bool:
    """Return whether an image's shape is [H, W, C]."""
    return shape[-1] in (1, 3) and shape[0] not in (1, 3)


class _Reader:
    """Reads the user's object; collects the names of classes, and notes."""

    def __init__(self, name: str, unlabelled: str | None = None) -> None:
        self.name, self.unlabelled = name, unlabelled
        self.classes: list[str] = []
        self.notes: list[str] = []
        self.label_shape: tuple[int, ...] | None = None

    def wrong(self, why: str) -> UserError:
        return UserError(f"data {self.name}: {why}")

    def splits(self, made: Any) -> dict[str, Split]:
        if isinstance(made, tuple | list) and len(made) == 2 and not hasattr(made[0], "shape"):
            made = dict(zip(("train", "test"), made, strict=True))

        def get(key: str) -> Any:
            return made.get(key) if isinstance(made, Mapping) else getattr(made, key, None)

        values = {name: next((v for key in keys if (v := get(key)) is not None), None) for name, keys in SPLITS.items()}
        for name in ("train", "test"):
            if values[name] is None:
                raise self.wrong(f"there is no {name} in a {type(made).__name__}: {FORMS}")
        found = {name: self.split(name, value) for name, value in values.items() if value is not None}
        if self.unlabelled is not None:
            if (more := get(self.unlabelled)) is None:
                raise self.wrong(
                    f"there is no {shown(self.unlabelled)} in a {type(made).__name__}, which data.unlabelled names"
                )
            found[UNLABELLED] = self.without_labels(more)
        return found

    def without_labels(self, value: Any) -> Split:
        """Return images without labels, each with -1: an array, a sequence of images, or what a split may be."""
        if isinstance(value, tuple | list) and len(value) == 2 and hasattr(value[0], "shape") and value[0].ndim > 2:
            value = value[0]
        if hasattr(value, "shape"):
            return self.arrays(UNLABELLED, np.asarray(value), np.full(len(value), -1))
        columns = getattr(value, "column_names", None) or ()
        image = next((key for key in IMAGE_KEYS if key in columns), None)
        if not hasattr(value, "__getitem__") or not hasattr(value, "__len__") or not len(value):
            raise self.wrong(f"{self.unlabelled} is a {type(value).__name__}: give an array, or a data set of images")

        def item(position: int) -> Any:
            found = value[position] if image is None else value[position][image]
            return found[0] if isinstance(found, tuple | list) else found

        return Split(np.full(len(value), -1), item=item)

    def split(self, name: str, value: Any) -> Split:
        if any("IterableDataset" in cls.__name__ for cls in type(value).__mro__):
            raise self.wrong(
                f"{name} is an iterable data set, whose images cannot be asked for by number: runs could neither "
                "resume nor be shared among processes; give one with __getitem__ and __len__"
            )
        columns = getattr(value, "column_names", None)
        if columns is not None:
            return self.hugging_face(name, value, list(columns))
        if isinstance(value, tuple | list) and len(value) == 2 and hasattr(value[0], "shape"):
            return self.arrays(name, np.asarray(value[0]), value[1])
        if not hasattr(value, "__getitem__") or not hasattr(value, "__len__"):
            raise self.wrong(f"{name} is a {type(value).__name__}: {PAIRS}")
        if len(value) == 0:
            raise self.wrong(f"{name} is empty")
        item = self.item_of(name, lambda position: value[position])
        known = next((x for key in ("targets", "labels") if (x := getattr(value, key, None)) is not None), None)
        if not self.classes and isinstance(names := getattr(value, "classes", None), Sequence):
            self.classes = [str(each) for each in names]
        if known is None or isinstance(known, str) or len(known) != len(value):
            known = [item(position)[1] for position in range(len(value))]
        return Split(self.labels(name, known), item=lambda position: item(position)[0])

    def item_of(self, name: str, get: Callable[[int], Any]) -> Callable[[int], tuple[Any, Any]]:
        def item(position: int) -> tuple[Any, Any]:
            try:
                found = get(position)
                image, label = found[0], found[1]
            except UserError:
                raise
            except Exception as error:
                why = f"{type(error).__name__}: {first_line(error)}"
                raise self.wrong(f"item {position} of {name} is no pair (image, label) ({why})") from error
            return image, label

        return item

    def hugging_face(self, name: str, value: Any, columns: list[str]) -> Split:
        keys = [next((key for key in keys if key in columns), None) for keys in (IMAGE_KEYS, LABEL_KEYS)]
        if None in keys:
            raise self.wrong(
                f"{name} has the columns {', '.join(columns)}: it needs image (or img) and label (or labels)"
            )
        image, label = keys
        names = getattr(value.features[label], "names", None)
        self.classes = self.classes or [str(each) for each in names or ()]
        item = self.item_of(name, lambda position: (value[position][image], 0))
        return Split(self.labels(name, list(value[label])), item=lambda position: item(position)[0])

    def arrays(self, name: str, images: NDArray[Any], labels: Any) -> Split:
        values = self.labels(name, labels)
        if len(images) != len(values):
            raise self.wrong(f"{name} has {len(images)} images and {len(values)} labels")
        if images.dtype == np.uint8 and images.ndim in (3, 4):
            pixels = images[:, None] if images.ndim == 3 else images
            if images.ndim == 4 and _last_channels(images.shape[1:]):
                pixels = pixels.transpose(0, 3, 1, 2)
            return Split(values, pixels=np.ascontiguousarray(pixels))
        if images.dtype.kind != "f" or images.ndim != 4:
            raise self.wrong(
                f"the images of {name} are {images.dtype} {list(images.shape)}: give uint8 [N, H, W, C], [N, C, H, W] "
                "or [N, H, W], or floats [N, C, H, W]"
            )
        return Split(values, item=lambda position: images[position])

    def labels(self, name: str, labels: Any) -> NDArray[np.int64]:
        """Return labels, one per image, or several: a row of 0 and 1 with a column for each class."""
        try:
            values = np.stack([np.asarray(row) for row in labels]) if isinstance(labels, list) else np.asarray(labels)
            whole = values.dtype.kind in "iub" or (values.ndim == 2 and bool(np.isin(values, (0, 1)).all()))
            if values.ndim not in (1, 2) or not whole or not values.size:
                raise ValueError(f"{values.dtype} {list(values.shape)}")
            if self.label_shape not in (None, values.shape[1:]):
                raise ValueError("other splits have labels of another shape")
        except (ValueError, TypeError, RuntimeError) as error:
            raise self.wrong(
                f"the labels of {name} must be whole numbers, one an image, or rows of 0 and 1 ({first_line(error)})"
            ) from None
        self.label_shape = values.shape[1:]
        return values.astype(np.int64)

    def kind(self, name: str, split: Split) -> str:
        """Return what the images of a split are, after checking that item 0 is a function of the generators' seeds."""
        if split.pixels is not None:
            return "pixels"
        assert split.item is not None
        draws = []
        for seed in (0, 0, 1):
            with seeded(seed):
                draws.append(split.item(0))
        first = draws[0]
        plain = hasattr(first, "convert") or getattr(np.asarray(first), "dtype", None) == np.uint8
        same, others = (np.array_equal(np.asarray(first), np.asarray(other)) for other in draws[1:])
        if not same:
            raise self.wrong(
                f"item 0 of {name} differs between two calls with the same seeds: runs could not resume exactly; draw "
                "random numbers from torch, numpy.random or random only"
            )
        if plain:
            if not others:
                raise self.wrong(
                    f"the images of {name} are changed at random, but not yet numbers: end the transforms with "
                    "ToTensor, or leave them to data.flip, data.crop_padding and the like"
                )
            return "pixels"
        array = np.asarray(first)
        if array.dtype.kind != "f" or array.ndim != 3:
            raise self.wrong(
                f"an image of {name} is a {type(first).__name__} ({array.dtype} {list(array.shape)}): give Pillow "
                "images, uint8, or floats [C, H, W]"
            )
        return "tensors"

    def in_memory(self, name: str, split: Split) -> Split:
        """Return a split with its images in memory, if they have one size and are not too many."""
        if split.pixels is not None:
            return split
        assert split.item is not None
        first, count = as_bytes(split.item(0)), len(split.labels)
        if first.nbytes * count > LARGEST:
            return split
        pixels = np.empty((count, *first.shape), np.uint8)
        for position in range(count):
            image = as_bytes(split.item(position))
            if image.shape != first.shape:
                return split
            pixels[position] = image
        return Split(split.labels, pixels=pixels)

    def size(self, kind: str, splits: Mapping[str, Split], wanted: int | None) -> tuple[int, int]:
        """Return channels and side of the images."""
        if kind == "pictures":
            return 3, wanted or 224
        shapes = {
            name: tuple(s.pixels.shape[1:]) if s.pixels is not None else tuple(np.asarray(s.item(0)).shape)  # type: ignore[misc]
            for name, s in splits.items()
        }
        shape = shapes["train"]
        if len({*shapes.values()}) > 1 or shape[1] != shape[2] or shape[0] not in (1, 3):
            listed = ", ".join(f"{name} {'x'.join(map(str, each))}" for name, each in shapes.items())
            raise self.wrong(f"the images must be square, of one size, with 1 or 3 channels, and are {shown(listed)}")
        if wanted not in (None, shape[1]):
            raise self.wrong(
                f"data.image_size={wanted}, but the images have a side of {shape[1]}: remove data.image_size"
            )
        return shape[0], shape[1]


def _digest(splits: Mapping[str, Split], classes: Sequence[str]) -> str:
    """Return the SHA-256 of the labels and images; of images that are not in memory, of a sample."""
    digest = hashlib.sha256(repr(list(classes)).encode())
    for name, split in splits.items():
        digest.update(f"{name} {len(split.labels)}\n".encode() + split.labels.tobytes())
        if split.pixels is not None:
            digest.update(f"{split.pixels.shape}".encode() + split.pixels.tobytes())
            continue
        assert split.item is not None
        for number in range(min(SAMPLE, len(split.labels))):
            position = number * len(split.labels) // min(SAMPLE, len(split.labels))
            with seeded(seed_of("digest", position)):
                image = np.ascontiguousarray(np.asarray(split.item(position)))
            digest.update(f"{image.dtype} {image.shape}".encode() + image.tobytes())
    return digest.hexdigest()
