"""Options of every data set, and the table that names them. Nothing here imports torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field

SUBSET = (
    "train_fraction",
    "exclude_classes",
    "num_partitions",
    "partition",
    "dirichlet_alpha",
    "classes_per_partition",
)
"""The keys that choose among the training images."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """What every data set has: the split, the share of it that is trained on, and the view.

    `partition`, then `exclude_classes`, then `train_fraction` choose among the training images that validation leaves,
    by `split_seed` alone; validation and test stay whole, and networks have all classes.

    Known before the images are read: `channels`, the side `image_size` in pixels, `num_classes`, `train_samples` (with
    those of validation) and `papers`, keys of `cards/papers.bib`.
    """

    channels: ClassVar[int] = 3
    num_classes: ClassVar[int]
    train_samples: ClassVar[int]
    papers: ClassVar[tuple[str, ...]] = ()

    name: str
    val_fraction: Annotated[
        float, Field(ge=0, lt=1, description="share of the training images held out for selection; 0: no selection")
    ] = 0.1
    split_seed: Annotated[
        int, Field(ge=0, description="seed of the validation split; apart from `seed`, so that all runs share it")
    ] = 0
    train_fraction: Annotated[
        float,
        Field(gt=0, le=1, description="share of each class's training images that is trained on; smaller in larger"),
    ] = 1.0
    exclude_classes: Annotated[
        list[Annotated[int, Field(ge=0)]],
        Field(description="numbers of classes whose training images are left out; validation and test keep them"),
    ] = field(default_factory=list)
    num_partitions: Annotated[
        int, Field(ge=1, description="disjoint parts that the training images are dealt into")
    ] = 1
    partition: Annotated[
        Annotated[int, Field(ge=0)] | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None,
        Field(description="the part that is trained on, from 0 on; a list: their union; null: all of them"),
    ] = None
    dirichlet_alpha: Annotated[
        float | None,
        Field(gt=0, description="each class's shares of the parts ~ Dirichlet(dirichlet_alpha); null: equal shares"),
    ] = None
    classes_per_partition: Annotated[
        int | None, Field(ge=1, description="classes of a part; parts are dealt the classes in turn; null: all classes")
    ] = None
    flip: Annotated[bool, Field(description="mirror each training image with probability 1/2")] = True
    cutout: Annotated[int, Field(ge=0, description="side in pixels of the square that is blanked; 0: none")] = 0
    mixup: Annotated[
        float, Field(ge=0, description="mix images and labels with weights from Beta(mixup, mixup); 0: none")
    ] = 0.0
    cutmix: Annotated[
        float, Field(ge=0, description="put boxes of other images in, their area from Beta(cutmix, cutmix); 0: none")
    ] = 0.0
    cutmix_probability: Annotated[
        float, Field(gt=0, le=1, description="cutmix: share of the images that get a box (published: 0.5 on CIFAR)")
    ] = 0.5

    def on_all_images(self) -> Data:
        """Return the same data with all of its training images: what a teacher that is trained first sees."""
        defaults = Data(name=self.name)
        return dataclasses.replace(self, **{key: getattr(defaults, key) for key in SUBSET})


@dataclass(frozen=True, kw_only=True)
class InMemory(Data):
    """Small images that live on the device as bytes."""

    image_size: ClassVar[int] = 32

    root: Annotated[str, Field(description="folder of the data; downloaded there if missing")] = "data"
    crop_padding: Annotated[int, Field(ge=0, description="pixels of zero padding before the random crop; 0: none")] = 4


@dataclass(frozen=True, kw_only=True)
class Digits(InMemory):
    """scikit-learn's 1,797 handwritten digits, 8x8, embedded: nothing is downloaded."""

    channels: ClassVar[int] = 1
    image_size: ClassVar[int] = 8
    num_classes: ClassVar[int] = 10
    train_samples: ClassVar[int] = 1_258
    papers: ClassVar[tuple[str, ...]] = ("alpaydin1998optical", "pedregosa2011scikit")

    name: Literal["digits"] = "digits"
    val_fraction: Annotated[
        float, Field(ge=0, lt=1, description="share of the training images held out for selection; 0: no selection")
    ] = 0.2
    flip: Annotated[bool, Field(description="mirror each training image with probability 1/2")] = False
    crop_padding: Annotated[int, Field(ge=0, description="pixels of zero padding before the random crop; 0: none")] = 1


@dataclass(frozen=True, kw_only=True)
class FashionMNIST(InMemory):
    """70,000 gray images of clothes, 28x28, 10 classes."""

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
    """One folder a class under `root/train` and `root/test` (or `root/val`); images of any size.

    Before the folder is read, it is taken to be as ImageNet.
    """

    num_classes: ClassVar[int] = 1_000
    train_samples: ClassVar[int] = 1_281_167

    name: Literal["image_folder"] = "image_folder"
    root: Annotated[str | None, Field(description="folder that holds train/ and test/ (or val/); required")] = None
    image_size: Annotated[int, Field(ge=1, description="side in pixels that networks see")] = 224
    min_scale: Annotated[
        float, Field(gt=0, le=1, description="smallest share of the area that a training crop takes")
    ] = 0.08
    num_workers: Annotated[int, Field(ge=0, description="decoding processes of each process")] = 2
    classes: Annotated[
        int | None, Field(ge=2, description="how many classes there must be; null: as many as folders")
    ] = None


DATA: dict[str, type[InMemory] | type[ImageFolder]] = {
    "digits": Digits,
    "fashion_mnist": FashionMNIST,
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "image_folder": ImageFolder,
}
