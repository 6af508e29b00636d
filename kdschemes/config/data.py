"""Options of every data set, and the table of data sets. Nothing here imports torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from kdschemes.config.paths import FilePath

SUBSET = (
    "train_fraction",
    "exclude_classes",
    "num_partitions",
    "partition",
    "dirichlet_alpha",
    "classes_per_partition",
)
"""The keys that select a subset of the training images."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Options of every data set: validation split, training subset and augmentation.

    `partition`, `exclude_classes` and `train_fraction`, in this order, select from the training images that are not
    held out for validation, seeded by `split_seed` alone; validation, test and the number of classes do not change.

    Known before the images are read: `channels`, the side `image_size` in pixels, `num_classes`, `train_samples` (with
    those of validation) and `papers`, keys of `cards/papers.bib`. `run_defaults` are the defaults of other groups where
    this data set needs its own; those of the groups themselves are for CIFAR-100.
    """

    channels: ClassVar[int] = 3
    num_classes: ClassVar[int]
    train_samples: ClassVar[int]
    papers: ClassVar[tuple[str, ...]] = ()
    run_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    unlabelled: ClassVar[str | None] = None

    name: str
    val_fraction: Annotated[
        float, Field(ge=0, lt=1, description="fraction of training images held out to select the best epoch; 0: none")
    ] = 0.1
    split_seed: Annotated[
        int, Field(ge=0, description="seed of the validation split; separate from `seed`, so that all runs share it")
    ] = 0
    train_fraction: Annotated[
        float,
        Field(gt=0, le=1, description="fraction of each class's training images to use; subsets are nested"),
    ] = 1.0
    exclude_classes: Annotated[
        list[Annotated[int, Field(ge=0)]],
        Field(description="indices of classes to drop from training; validation and test keep them"),
    ] = field(default_factory=list)
    num_partitions: Annotated[
        int, Field(ge=1, le=1_000_000, description="disjoint partitions of the training images")
    ] = 1
    partition: Annotated[
        Annotated[int, Field(ge=0)] | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None,
        Field(description="the partition to train on, from 0; a list: their union; null: all of them"),
    ] = None
    dirichlet_alpha: Annotated[
        float | None,
        Field(gt=0, description="split each class over partitions by Dirichlet(dirichlet_alpha); null: equally"),
    ] = None
    classes_per_partition: Annotated[
        int | None, Field(ge=1, description="classes per partition, assigned round-robin; null: all classes")
    ] = None
    sampling: Annotated[
        Literal["shuffled", "balanced"],
        Field(description="shuffled: each image once an epoch; balanced: each class equally often, repeating images"),
    ] = "shuffled"
    flip: Annotated[bool, Field(description="mirror each training image with probability 1/2")] = True
    mean: Annotated[
        list[Annotated[float, Field(ge=0, le=1)]] | None,
        Field(description="mean of the images per channel, scaled to 0..1; null: the data's own"),
    ] = None
    std: Annotated[
        list[Annotated[float, Field(ge=0.001, le=1)]] | None,
        Field(description="standard deviation of the images per channel, scaled to 0..1; null: as for mean"),
    ] = None
    auto_augment: Annotated[
        Literal["none", "randaugment", "trivialaugment"],
        Field(description="random operations on each training image, sampled independently for each view"),
    ] = "none"
    randaugment_ops: Annotated[int, Field(ge=1, le=14, description="randaugment: operations, one after another")] = 2
    randaugment_magnitude: Annotated[
        int, Field(ge=0, le=30, description="randaugment: strength of every operation; 30: the largest")
    ] = 9
    color_jitter: Annotated[
        Annotated[float, Field(ge=0)]
        | Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=3, max_length=4)],
        Field(
            description="random change of brightness, contrast, saturation, hue (at most 0.5), as a list; a number: of "
            "the first three; 0: none"
        ),
    ] = 0.0
    random_erasing: Annotated[
        float, Field(ge=0, le=1, description="fraction of training images in which a random box is masked out; 0: none")
    ] = 0.0
    cutout: Annotated[
        int, Field(ge=0, le=4_096, description="side in pixels of the square that is masked out; 0: none")
    ] = 0
    mixup: Annotated[
        float, Field(ge=0, description="mix images and labels with weights from Beta(mixup, mixup); 0: none")
    ] = 0.0
    cutmix: Annotated[
        float, Field(ge=0, description="paste boxes from other images, their area from Beta(cutmix, cutmix); 0: none")
    ] = 0.0
    cutmix_probability: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description="cutmix: fraction of images that get a box (paper: 0.5 on CIFAR); mixup is for the others",
        ),
    ] = 0.5

    def on_all_images(self) -> Data:
        """Return the same data with all training images, once an epoch: what a teacher that is trained first sees."""
        defaults = Data(name=self.name)
        return dataclasses.replace(self.labelled(), **{key: getattr(defaults, key) for key in (*SUBSET, "sampling")})

    def labelled(self) -> Data:
        """Return the same data without images that have no labels."""
        return self if self.unlabelled is None else dataclasses.replace(self, unlabelled=None)  # type: ignore[call-arg]


@dataclass(frozen=True, kw_only=True)
class InMemory(Data):
    """Small images, kept on the device as bytes."""

    image_size: ClassVar[int] = 32

    root: Annotated[FilePath, Field(description="folder of the data; downloaded there if missing")] = "data"
    crop_padding: Annotated[
        int, Field(ge=0, le=64, description="pixels of zero padding before the random crop; 0: none")
    ] = 4


@dataclass(frozen=True, kw_only=True)
class Digits(InMemory):
    """scikit-learn's 1,797 handwritten digits, 8x8; ships with scikit-learn, no download."""

    channels: ClassVar[int] = 1
    image_size: ClassVar[int] = 8
    num_classes: ClassVar[int] = 10
    train_samples: ClassVar[int] = 1_258
    papers: ClassVar[tuple[str, ...]] = ("alpaydin1998optical", "pedregosa2011scikit")
    run_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "data": {"train_fraction": 0.1},
        "model": {"name": "wrn_16_1"},
        "teacher": {"name": "resnet8x4", "epochs": 15, "batch_size": 64},
        "train": {"epochs": 100, "batch_size": 64},
    }
    """For a first look: a small student with few labels, and a larger teacher that has seen all of them."""

    name: Literal["digits"] = "digits"
    val_fraction: Annotated[
        float, Field(ge=0, lt=1, description="fraction of training images held out to select the best epoch; 0: none")
    ] = 0.2
    flip: Annotated[bool, Field(description="mirror each training image with probability 1/2")] = False
    crop_padding: Annotated[
        int, Field(ge=0, le=64, description="pixels of zero padding before the random crop; 0: none")
    ] = 1


@dataclass(frozen=True, kw_only=True)
class MNIST(InMemory):
    """70,000 grayscale images of handwritten digits, 28x28, 10 classes."""

    run_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {"train": {"epochs": 20}, "teacher": {"epochs": 20}}
    channels: ClassVar[int] = 1
    image_size: ClassVar[int] = 28
    num_classes: ClassVar[int] = 10
    train_samples: ClassVar[int] = 60_000
    papers: ClassVar[tuple[str, ...]] = ("lecun1998gradient",)

    name: Literal["mnist"] = "mnist"
    flip: Annotated[bool, Field(description="mirror each training image with probability 1/2")] = False
    crop_padding: Annotated[
        int, Field(ge=0, le=64, description="pixels of zero padding before the random crop; 0: none")
    ] = 2


@dataclass(frozen=True, kw_only=True)
class FashionMNIST(InMemory):
    """70,000 grayscale images of clothing, 28x28, 10 classes."""

    run_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {"train": {"epochs": 60}, "teacher": {"epochs": 60}}
    channels: ClassVar[int] = 1
    image_size: ClassVar[int] = 28
    num_classes: ClassVar[int] = 10
    train_samples: ClassVar[int] = 60_000
    papers: ClassVar[tuple[str, ...]] = ("xiao2017fashion",)

    name: Literal["fashion_mnist"] = "fashion_mnist"


@dataclass(frozen=True, kw_only=True)
class CIFAR10(InMemory):
    """60,000 color images, 32x32, 10 classes."""

    num_classes: ClassVar[int] = 10
    train_samples: ClassVar[int] = 50_000
    papers: ClassVar[tuple[str, ...]] = ("krizhevsky2009learning",)

    name: Literal["cifar10"] = "cifar10"


@dataclass(frozen=True, kw_only=True)
class CIFAR100(InMemory):
    """60,000 color images, 32x32, 100 classes."""

    num_classes: ClassVar[int] = 100
    train_samples: ClassVar[int] = 50_000
    papers: ClassVar[tuple[str, ...]] = ("krizhevsky2009learning",)

    name: Literal["cifar100"] = "cifar100"


@dataclass(frozen=True, kw_only=True)
class ImageFolder(Data):
    """One folder per class under `root/train` and `root/test` (or `root/val`); images of any size.

    With all three, `root/val` is the validation split and `val_fraction` has no effect.

    Before the folder is read, ImageNet's numbers are assumed.
    """

    num_classes: ClassVar[int] = 1_000
    train_samples: ClassVar[int] = 1_281_167
    run_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "train": {"epochs": 100, "batch_size": 256},
        "teacher": {"epochs": 100, "batch_size": 256},
    }

    name: Literal["image_folder"] = "image_folder"
    root: Annotated[FilePath | None, Field(description="folder that holds train/ and test/ (or val/); required")] = None
    unlabelled: Annotated[  # type: ignore[misc]
        FilePath | None,
        Field(description="folder of images without labels, at any depth, for losses between networks; null: none"),
    ] = None
    image_size: Annotated[int, Field(ge=1, le=4_096, description="side in pixels of the network's input")] = 224
    min_scale: Annotated[
        float, Field(gt=0, le=1, description="smallest fraction of the image area in a training crop")
    ] = 0.08
    num_workers: Annotated[int, Field(ge=0, le=256, description="data-loading workers per process")] = 2
    classes: Annotated[int | None, Field(ge=2, description="expected number of classes; null: that of folders")] = None


@dataclass(frozen=True, kw_only=True)
class OwnData(Data):
    """Your own images, returned by a function: data=MODULE:NAME or FILE.py:NAME.

    Before they are read, so many images are assumed.
    """

    train_samples: ClassVar[int] = 50_000

    kwargs: Annotated[dict[str, Any] | None, Field(description="arguments of your function: data.kwargs.root=PATH")] = (
        None
    )
    unlabelled: Annotated[  # type: ignore[misc]
        str | None,
        Field(description="key of its images without labels, beside train and test, for losses between networks"),
    ] = None
    num_classes: Annotated[  # type: ignore[misc]
        int | None, Field(ge=2, description="number of classes; null: that of class names, or the largest label + 1")
    ] = None  # type: ignore[assignment]
    image_size: Annotated[
        int | None, Field(ge=1, le=4_096, description="side of the input for pictures of different sizes; null: 224")
    ] = None
    crop_padding: Annotated[
        int | None,
        Field(ge=0, le=64, description="pixels of zero padding before the random crop; null: an eighth of the side"),
    ] = None
    min_scale: Annotated[
        float, Field(gt=0, le=1, description="pictures of different sizes: smallest fraction of the area in a crop")
    ] = 0.08
    num_workers: Annotated[
        int, Field(ge=0, le=256, description="data-loading workers per process, for images not in memory; 0: none")
    ] = 0


DATA: dict[str, type[InMemory] | type[ImageFolder]] = {
    "digits": Digits,
    "mnist": MNIST,
    "fashion_mnist": FashionMNIST,
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "image_folder": ImageFolder,
}
