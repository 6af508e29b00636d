"""Reading the data sets: whole, missing, cut short and damaged files."""

from __future__ import annotations

import gzip
import shutil
import struct
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from kdschemes.data.datasets import (
    CIFAR10_FILES,
    CIFAR100_FILES,
    FASHION_FILES,
    IDX_SHAPES,
    MNIST_FILES,
    Arrays,
    IdxFiles,
    read_cifar,
    read_digits,
    read_idx_files,
)
from kdschemes.data.download import read_idx
from kdschemes.errors import UserError
from tests.data.cases import NOWHERE, Server, SmallCifar, assert_whole, md5, one_line, place


def test_digits_are_whole_and_scaled() -> None:
    digits = read_digits(Path("unused"))
    assert digits.train_images.shape == (1258, 1, 8, 8)
    assert digits.test_images.shape == (539, 1, 8, 8)
    assert digits.train_images.dtype == torch.uint8
    assert digits.train_images.max() == 255
    assert len(digits.train_images.unique()) == 17
    share = digits.test_labels.bincount() / (digits.test_labels.bincount() + digits.train_labels.bincount())
    assert (share - 0.3).abs().max() < 0.004


def test_digits_split_is_always_the_same() -> None:
    digits = read_digits(Path("unused"))
    assert digits.test_labels[:12].tolist() == [3, 5, 8, 3, 8, 0, 9, 0, 7, 1, 2, 2]
    assert md5(digits.test_images.numpy().tobytes()) == "5178b43fa4f7dd55e201effaa862a17d"


def test_digits_statistics() -> None:
    digits = read_digits(Path("unused"))
    pixels = digits.train_images.double() / 255
    assert pixels.mean() == pytest.approx(digits.mean[0], abs=5e-5)
    assert pixels.std(correction=0) == pytest.approx(digits.std[0], abs=5e-5)


def test_cifar_facts_are_those_of_torchvision() -> None:
    for files, known in (
        (CIFAR10_FILES, torchvision.datasets.CIFAR10),
        (CIFAR100_FILES, torchvision.datasets.CIFAR100),
    ):
        assert (files.url, files.archive_md5, files.folder) == (known.url, known.tgz_md5, known.base_folder)
        assert list(files.train.items()) == [tuple(pair) for pair in known.train_list]
        assert list(files.test.items()) == [tuple(pair) for pair in known.test_list]
        assert files.meta == {known.meta["filename"]: known.meta["md5"]}
        assert files.names_key == known.meta["key"]


@pytest.mark.slow
def test_cifar100_equals_torchvision(cifar100_root: Path) -> None:
    ours = read_cifar(cifar100_root, CIFAR100_FILES)
    for train, images, labels in (
        (True, ours.train_images, ours.train_labels),
        (False, ours.test_images, ours.test_labels),
    ):
        theirs = torchvision.datasets.CIFAR100(cifar100_root, train=train)
        assert np.array_equal(images.numpy().transpose(0, 2, 3, 1), theirs.data)
        assert labels.tolist() == theirs.targets
        assert ours.classes == theirs.classes
    pixels = ours.train_images[::5].float().div(255).transpose(0, 1).flatten(1)
    assert torch.allclose(pixels.mean(1), torch.tensor(ours.mean), atol=2e-3)
    assert torch.allclose(pixels.std(1), torch.tensor(ours.std), atol=2e-3)


def test_cifar_files_in_place_need_no_network(small: SmallCifar, tmp_path: Path) -> None:
    place(small, tmp_path / "data")
    assert_whole(small, read_cifar(tmp_path / "data", small.files))


@pytest.mark.parametrize("name", ["data_batch_2", "test_batch", "batches.meta"])
@pytest.mark.parametrize("fault", ["missing", "cut", "changed"])
def test_broken_cifar_file_is_named(small: SmallCifar, tmp_path: Path, name: str, fault: str) -> None:
    path = place(small, tmp_path / "data") / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if fault == "missing":
        path.unlink()
    else:
        path.write_bytes(data if fault == "changed" else data[:-5])
    with pytest.raises(UserError) as error:
        read_cifar(tmp_path / "data", small.files)
    message = one_line(error)
    assert str(path) in message
    assert ("missing" if fault == "missing" else "damaged or incomplete") in message
    assert small.files.url in message
    assert "check the network" in message


def test_root_that_cannot_be_a_folder(small: SmallCifar, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(UserError, match=r"cannot write to .*data .*set data\.root"):
        read_cifar(tmp_path / "data", small.files)


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


@pytest.fixture(scope="module")
def fashion_bytes() -> dict[str, bytes]:
    """Four compressed files of the right shapes; the first pixels of an image number it."""
    contents = {}
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        images = np.zeros((count, 28, 28), np.uint8)
        images[:, 0, 0], images[:, 0, 1] = np.arange(count) // 256, np.arange(count) % 256
        contents[f"{part}-images-idx3-ubyte"] = gzip.compress(idx(images), 1)
        contents[f"{part}-labels-idx1-ubyte"] = gzip.compress(idx((np.arange(count) % 10).astype(np.uint8)), 1)
    return contents


def assert_fashion(arrays: Arrays) -> None:
    assert arrays.train_images.shape == (60_000, 1, 28, 28)
    assert arrays.test_images.shape == (10_000, 1, 28, 28)
    number = arrays.train_images[:, 0, 0, 0].long() * 256 + arrays.train_images[:, 0, 0, 1]
    assert torch.equal(number, torch.arange(60_000))
    assert torch.equal(arrays.train_labels, torch.arange(60_000) % 10)
    assert torch.equal(arrays.test_labels, torch.arange(10_000) % 10)


def put(folder: Path, contents: dict[str, bytes], *, packed: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        (folder / (f"{name}.gz" if packed else name)).write_bytes(data if packed else gzip.decompress(data))
    return folder


@pytest.mark.parametrize(
    ("files", "known"), [(FASHION_FILES, torchvision.datasets.FashionMNIST), (MNIST_FILES, torchvision.datasets.MNIST)]
)
def test_facts_of_idx_files_are_those_of_torchvision(files: IdxFiles, known: type[torchvision.datasets.MNIST]) -> None:
    archives = [(f"{name}.gz", total) for name, total in zip(IDX_SHAPES, files.archive_md5, strict=True)]
    assert archives == list(known.resources)
    assert files.url in known.mirrors
    assert [name.partition(" - ")[0] for name in known.classes] == list(files.classes)


def test_mnist_is_the_published_one(shared: Path) -> None:
    arrays = read_idx_files(shared / "data" / "mnist", MNIST_FILES)
    assert (arrays.train_images.shape, arrays.test_images.shape) == ((60_000, 1, 28, 28), (10_000, 1, 28, 28))
    assert arrays.train_labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert arrays.test_labels.bincount()[3] == 1010
    pixels = arrays.train_images.double() / 255
    assert (round(pixels.mean().item(), 4), round(pixels.std().item(), 4)) == (arrays.mean[0], arrays.std[0])


def test_a_changed_mnist_is_refused(shared: Path, tmp_path: Path) -> None:
    for path in (shared / "data" / "mnist").iterdir():
        shutil.copy(path, tmp_path)
    name = "t10k-labels-idx1-ubyte"
    content = bytearray(gzip.decompress((tmp_path / f"{name}.gz").read_bytes()))
    content[-1], content[-2] = content[-2], content[-1]
    assert content[-1] != content[-2]
    (tmp_path / f"{name}.gz").chmod(0o644)
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    with pytest.raises(UserError, match=rf"{name}\.gz is damaged or from another data set \(MD5"):
        read_idx_files(tmp_path, replace(MNIST_FILES, url=NOWHERE))


@pytest.mark.parametrize("place_of_files", [".", "FashionMNIST/raw", "system"])
@pytest.mark.parametrize("packed", [True, False])
def test_fashion_is_read_where_it_lies(
    tmp_path: Path, fashion_bytes: dict[str, bytes], place_of_files: str, packed: bool
) -> None:
    root, system = tmp_path / "data", tmp_path / "system"
    put(system if place_of_files == "system" else root / place_of_files, fashion_bytes, packed=packed)
    assert_fashion(read_idx_files(root, replace(FASHION_FILES, url=NOWHERE, system=system)))
    assert not list(tmp_path.rglob("*.lock"))


def test_fashion_that_is_nowhere(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read_idx_files(tmp_path / "data", replace(FASHION_FILES, url=NOWHERE, system=tmp_path / "system"))
    message = one_line(error)
    assert "train-images-idx3-ubyte.gz is missing" in message
    assert NOWHERE in message
    assert str(tmp_path / "data" / "FashionMNIST" / "raw") in message


def damage(data: bytes, fault: str) -> bytes:
    if fault == "cut":
        return data[: len(data) // 2]
    if fault == "bit":
        middle = len(data) // 2
        return data[:middle] + bytes([data[middle] ^ 16]) + data[middle + 1 :]
    if fault == "not gzip":
        return b"<html>404</html>"
    if fault == "not idx":
        return gzip.compress(b"\0\0\x0d\x01" + bytes(1000))
    assert fault == "other shape"
    return gzip.compress(idx(np.zeros(999, np.uint8)))


@pytest.mark.parametrize("fault", ["cut", "bit", "not gzip", "not idx", "other shape"])
@pytest.mark.parametrize("folder", [".", "FashionMNIST/raw"])
def test_damaged_fashion_file_is_named(
    tmp_path: Path, fashion_bytes: dict[str, bytes], fault: str, folder: str
) -> None:
    root, name = tmp_path / "data", "t10k-labels-idx1-ubyte"
    put(root / folder, {**fashion_bytes, name: damage(fashion_bytes[name], fault)})
    with pytest.raises(UserError) as error:
        read_idx_files(root, replace(FASHION_FILES, url=NOWHERE, system=tmp_path / "system"))
    assert f"{name}.gz" in one_line(error)


def test_fashion_labels_of_another_set_are_refused(tmp_path: Path, fashion_bytes: dict[str, bytes]) -> None:
    name = "t10k-labels-idx1-ubyte"
    labels = gzip.compress(idx((np.arange(10_000) % 11).astype(np.uint8)))
    put(tmp_path / "data", {**fashion_bytes, name: labels})
    with pytest.raises(UserError, match=rf"{name}\.gz .* labels 0 to 9"):
        read_idx_files(tmp_path / "data", replace(FASHION_FILES, url=NOWHERE, system=tmp_path / "system"))


def test_fashion_download_that_comes_changed_is_refused(
    tmp_path: Path, fashion_bytes: dict[str, bytes], server: Server
) -> None:
    put(server.folder, fashion_bytes)  # not the published bytes: their sums differ
    with pytest.raises(UserError, match="MD5 differs"):
        read_idx_files(tmp_path / "data", replace(FASHION_FILES, url=server.url, system=tmp_path / "system"))
    assert server.requests == ["/train-images-idx3-ubyte.gz"]
    assert not list((tmp_path / "data").rglob("*ubyte*"))


def test_plain_idx_that_is_cut_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels-idx1-ubyte"
    data = idx(np.arange(50, dtype=np.uint8))
    path.write_bytes(data)
    assert read_idx(path, (50,)).tolist() == list(range(50))
    for cut in (data[:-1], data[:6], data[:3], b"", data + b"\0"):
        path.write_bytes(cut)
        with pytest.raises(UserError, match="labels-idx1-ubyte is"):
            read_idx(path, (50,))


def test_an_idx_file_is_not_unpacked_beyond_its_shape(tmp_path: Path) -> None:
    path = tmp_path / "labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(idx(np.arange(50, dtype=np.uint8)) + bytes(30_000_000), 1))
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"expected \(50,\); shape \(50,\), more bytes than that"):
            read_idx(path, (50,))
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
