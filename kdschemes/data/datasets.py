"""The small in-memory data sets: their files, readers and pixel statistics."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from kdschemes.config.data import CIFAR10, CIFAR100, DATA, MNIST, Digits, FashionMNIST, InMemory
from kdschemes.config.plugins import register
from kdschemes.data.download import damaged, fetch, read_idx, unpack, writing
from kdschemes.data.splits import stratified_split
from kdschemes.errors import UserError

DIGITS_TEST_FRACTION = 0.3

DIGITS_TEST_SEED = 1797


@dataclass(frozen=True)
class Arrays:
    """A whole data set as bytes, with the mean and std of the training pixels (scaled to 0..1) per channel."""

    train_images: UInt8[Tensor, "train c h w"]
    train_labels: Int[Tensor, " train"] | Int[Tensor, "train classes"]
    test_images: UInt8[Tensor, "test c h w"]
    test_labels: Int[Tensor, " test"] | Int[Tensor, "test classes"]
    classes: list[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class CifarFiles:
    """The files of a CIFAR data set: MD5 sums by name, and the keys of their contents."""

    url: str
    archive_md5: str
    folder: str
    train: Mapping[str, str]
    test: Mapping[str, str]
    meta: Mapping[str, str]
    label_key: str
    names_key: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


CIFAR10_FILES = CifarFiles(
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    archive_md5="c58f30108f718f92721af3b95e74349a",
    folder="cifar-10-batches-py",
    train={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    },
    test={"test_batch": "40351d587109b95175f43aff81a1287e"},
    meta={"batches.meta": "5ff9c542aee3614f3951f8cda6e48888"},
    label_key="labels",
    names_key="label_names",
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)

CIFAR100_FILES = CifarFiles(
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    archive_md5="eb9058c3a382ffc7106e4002c42a8d85",
    folder="cifar-100-python",
    train={"train": "16019d7e3df5f24257cddd939b257f8d"},
    test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    meta={"meta": "7973b15100ade9c7d40fb424638fde48"},
    label_key="fine_labels",
    names_key="fine_label_names",
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)

IDX_SHAPES: dict[str, tuple[int, ...]] = {
    "train-images-idx3-ubyte": (60_000, 28, 28),
    "train-labels-idx1-ubyte": (60_000,),
    "t10k-images-idx3-ubyte": (10_000, 28, 28),
    "t10k-labels-idx1-ubyte": (10_000,),
}
"""The files of MNIST and of data sets in its format; the published archives' names end in .gz."""


@dataclass(frozen=True)
class IdxFiles:
    """A data set in MNIST's format, its files in the order of `IDX_SHAPES`.

    `folder` is torchvision's below the root, `system` that of a Debian package. `archive_md5` are sums of the published
    archives, `md5` those of their contents if they are known: then files packed again are as good.
    """

    folder: str
    url: str
    archive_md5: tuple[str, str, str, str]
    classes: Sequence[str]
    mean: float
    std: float
    md5: tuple[str | None, str | None, str | None, str | None] = (None, None, None, None)
    system: Path | None = None


MNIST_FILES = IdxFiles(
    folder="MNIST/raw",
    url="https://ossci-datasets.s3.amazonaws.com/mnist/",
    archive_md5=(
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
    classes=[str(digit) for digit in range(10)],
    mean=0.1307,
    std=0.3081,
    md5=(
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    ),
)

FASHION_FILES = IdxFiles(
    folder="FashionMNIST/raw",
    url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    archive_md5=(
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    ),
    classes=[
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ],
    mean=0.2860,
    std=0.3530,
    system=Path("/usr/share/datasets/fashion-mnist"),
)


def read_digits(root: Path) -> Arrays:
    """Read scikit-learn's digits; `root` is not used.

    Gray values 0..16 are scaled to 0..255 and rounded. There is no official test set: ours is 30 % of each class, drawn
    with a fixed seed.
    """
    from sklearn.datasets import load_digits  # a slow import that other data sets do not need

    bunch = load_digits()
    images = torch.from_numpy(np.rint(bunch.images * (255 / 16)).astype(np.uint8))[:, None]
    labels, classes = torch.from_numpy(bunch.target).long(), [str(digit) for digit in range(10)]
    train, test = stratified_split(labels, DIGITS_TEST_FRACTION, seed=DIGITS_TEST_SEED, classes=classes)
    return Arrays(images[train], labels[train], images[test], labels[test], classes, (0.3059,), (0.3767,))


def read_cifar(root: Path, files: CifarFiles) -> Arrays:
    """Read CIFAR-10 or CIFAR-100 from `root`, in the layout of the published archive; download it if necessary.

    Raises:
        UserError: files are missing or damaged, and cannot be downloaded.
    """
    folder, sums = root / files.folder, {**files.train, **files.test, **files.meta}
    if damaged(folder, sums):
        with writing(root):
            if faults := damaged(folder, sums):
                archive = root / files.url.rpartition("/")[2]
                try:
                    fetch(files.url, archive, files.archive_md5)
                except UserError as error:
                    raise UserError(f"{faults[0]}; {error}") from error
                unpack(archive, root)
                if faults := damaged(folder, sums):
                    raise UserError(f"{faults[0]} after unpacking {archive}: delete {folder} and rerun")

    def load(names: Mapping[str, str]) -> tuple[Tensor, Tensor]:
        parts = [pickle.loads((folder / name).read_bytes(), encoding="latin1") for name in names]
        images = np.concatenate([part["data"] for part in parts]).reshape(-1, 3, 32, 32)
        return torch.from_numpy(images), torch.tensor([label for part in parts for label in part[files.label_key]])

    (meta,) = files.meta
    classes = pickle.loads((folder / meta).read_bytes(), encoding="latin1")[files.names_key]
    return Arrays(*load(files.train), *load(files.test), list(classes), files.mean, files.std)


def _idx_path(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)


def _read_idx_folder(folder: Path, files: IdxFiles) -> Arrays:
    arrays = []
    for (name, shape), md5 in zip(IDX_SHAPES.items(), files.md5, strict=True):
        path = _idx_path(folder, name)
        if path is None:
            raise UserError(f"{folder / name}.gz is missing")
        values = read_idx(path, shape, md5)
        if len(shape) == 1 and not np.array_equal(np.unique(values), np.arange(10)):
            raise UserError(f"{path} does not contain the labels 0 to 9: delete it and rerun to download it again")
        arrays.append(torch.from_numpy(values))
    train, train_labels, test, test_labels = arrays
    labels = (train_labels.long(), test_labels.long())
    statistics = (files.mean,), (files.std,)
    return Arrays(train[:, None], labels[0], test[:, None], labels[1], list(files.classes), *statistics)


def read_idx_files(root: Path, files: IdxFiles) -> Arrays:
    """Read the four files of a data set in MNIST's format, compressed or not.

    They are taken from the first complete folder of `root`, torchvision's folder below it, and the system's; otherwise
    they are downloaded.

    Raises:
        UserError: a file is missing or damaged, and cannot be downloaded.
    """
    own = root / files.folder
    places = [root, own, *([files.system] if files.system is not None else [])]
    holders = [folder for folder in places if all(_idx_path(folder, name) for name in IDX_SHAPES)]
    if holders and holders[0] != own:
        return _read_idx_folder(holders[0], files)
    try:
        return _read_idx_folder(own, files)
    except UserError as fault:
        with writing(root):
            for name, expected in zip(IDX_SHAPES, files.archive_md5, strict=True):
                try:
                    fetch(f"{files.url}{name}.gz", own / f"{name}.gz", expected)
                except UserError as error:
                    raise UserError(f"{str(fault).rpartition(': ')[0] or fault}; {error}") from error
    return _read_idx_folder(own, files)


READERS: dict[type[InMemory], Callable[[Path], Arrays]] = {
    Digits: read_digits,
    MNIST: lambda root: read_idx_files(root, MNIST_FILES),
    FashionMNIST: lambda root: read_idx_files(root, FASHION_FILES),
    CIFAR10: lambda root: read_cifar(root, CIFAR10_FILES),
    CIFAR100: lambda root: read_cifar(root, CIFAR100_FILES),
}
"""The reader of each data set by its options class; it is called with `data.root`."""


def register_dataset(options: type[InMemory], reader: Callable[[Path], Arrays]) -> None:
    """Make a data set of small images available as `data=NAME`, after the field `name` of its options.

    `options` is a frozen dataclass, a subclass of `InMemory` that says what is known before the images are read;
    `reader` is called with `data.root` and returns `Arrays`.

    Raises:
        UserError: another data set has the name.
    """
    if not issubclass(options, InMemory) or "name" not in options.__dataclass_fields__:
        raise UserError(f"{options.__name__} is not a dataclass of a data set: it needs the base InMemory and a name")
    register(DATA, options.name, options, "data")
    READERS[options] = reader
