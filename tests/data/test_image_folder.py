"""Folders of image files: real PNG and JPEG files of several modes and sizes, decoded with and without workers."""

from __future__ import annotations

import itertools
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from torchvision.transforms import v2

from kdschemes.config.data import ImageFolder
from kdschemes.core.types import Batch
from kdschemes.data import DataModule, open_data
from kdschemes.data.augment import Augmentation
from kdschemes.data.image_folder import FORMATS, MEAN, STD, read_image
from kdschemes.data.views import mixup_partners, mixup_weights
from kdschemes.errors import UserError
from kdschemes.models import crop_fraction
from kdschemes.storage.naming import config_hash
from tests.config import cases

CPU = torch.device("cpu")
KINDS = [("RGB", "png", (40, 30)), ("L", "png", (25, 61)), ("RGBA", "png", (33, 33)), ("RGB", "jpg", (64, 20))]
KINDS += [("L", "JPEG", (17, 17)), ("1", "png", (30, 31)), ("P", "png", (28, 36)), ("CMYK", "jpg", (35, 27))]


def write_image(path: Path, seed: int, mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), np.uint8)
    image = Image.fromarray(pixels)
    (image if mode == "RGBA" else image.convert("RGB").convert(mode)).save(path)


def build(root: Path, test: str = "test") -> Path:
    for k, name in enumerate(("cat", "dog", "owl")):
        for j in range(8):
            mode, suffix, size = KINDS[j]
            write_image(root / "train" / name / f"{j}.{suffix}", 100 * k + j, mode, size)
        for j in range(3):
            write_image(root / test / name / f"{j}.png", 1000 + 100 * k + j)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("images"))


def options(root: Path, **changes: object) -> ImageFolder:
    return replace(ImageFolder(root=str(root), image_size=16, num_workers=0, val_fraction=0.25), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [16, 17, 24])
def test_images_for_evaluation_are_those_of_timms_transform(root: Path, size: int) -> None:
    """Bit for bit, by what the data says of itself."""
    from timm.data import create_transform

    data = load(options(root, image_size=size))
    spec, positions = data.spec, data.positions["test"]
    transform = create_transform(
        input_size=(3, size, size),
        interpolation="bilinear",
        crop_pct=crop_fraction(spec.kept, size),
        mean=spec.mean,
        std=spec.std,
    )
    (images,) = data.source.plain("test", [positions])
    paths = data.source.decoder.paths["test"]  # type: ignore[attr-defined]
    theirs = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])
    assert torch.equal(images, theirs)


def load(chosen: ImageFolder, seed: int = 0) -> DataModule:
    return open_data(chosen, seed=seed, device=CPU)


def epoch(
    data: DataModule,
    number: int = 0,
    *,
    batch_size: int = 6,
    grad_accum_steps: int = 1,
    start: int = 0,
    aux_batches: Sequence[str] = (),
) -> list[Batch]:
    plan = data.train_steps(
        number,
        batch_size=batch_size,
        grad_accum_steps=grad_accum_steps,
        rank=0,
        world=1,
        drop_last=False,
        start=start,
        aux_batches=aux_batches,
    )
    return [batch for micros in plan for batch in micros]


def join(batches: list[Batch], field: str) -> Tensor:
    return torch.cat([getattr(batch, field) for batch in batches])


def views(batches: list[Batch]) -> dict[int, Tensor]:
    return dict(zip(join(batches, "index").tolist(), join(batches, "images"), strict=True))


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_facts(root: Path) -> None:
    data = load(options(root, classes=3))
    assert (data.num_classes, data.channels, data.image_size) == (3, 3, 16)
    assert data.classes == ["cat", "dog", "owl"]
    assert data.sizes == {"train": 18, "val": 6, "test": 9}
    assert data.labels["train"].tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert data.labels["test"].tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert data.labels["train"][data.positions["val"]].bincount().tolist() == [2, 2, 2]


def test_every_kind_of_file_gives_the_same_pixels_as_pillow(root: Path) -> None:
    for mode, suffix, size in KINDS:
        (path,) = (
            p for p in (root / "train" / "cat").iterdir() if p.name == f"{KINDS.index((mode, suffix, size))}.{suffix}"
        )
        image = read_image(str(path))
        assert image.mode == "RGB"
        assert image.size == size
        assert np.array_equal(np.asarray(image), np.asarray(Image.open(path).convert("RGB")))


def test_evaluation_resizes_crops_and_normalizes_only(root: Path) -> None:
    data = load(options(root))
    reference = v2.Compose(
        [
            v2.Resize(round(16 * 256 / 224)),
            v2.CenterCrop(16),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    paths = sorted((root / "test").rglob("*.png"))
    (batch,) = data.eval_batches("test", batch_size=50, rank=0, world=1)
    for path, image in zip(paths, batch.images, strict=True):
        torch.testing.assert_close(image, reference(Image.open(path).convert("RGB")), rtol=0, atol=1e-5)
    val = list(data.eval_batches("val", batch_size=4, rank=0, world=1))
    assert torch.equal(join(val, "index"), data.positions["val"])


@pytest.mark.parametrize("colors", [{}, {"auto_augment": "randaugment", "color_jitter": 0.4}], ids=["plain", "colors"])
def test_views_depend_on_seed_epoch_and_index_alone(root: Path, colors: dict[str, object]) -> None:
    chosen = options(root, cutout=4, mixup=0.5, cutmix=1.0, random_erasing=0.5, **colors)
    data = load(chosen)
    whole = epoch(data, 1)
    expected = views(whole)
    assert sorted(expected) == data.positions["train"].tolist()
    for batches in (epoch(data, 1, batch_size=18), epoch(data, 1, batch_size=9, grad_accum_steps=2)):
        got = views(batches)
        assert all(torch.equal(got[index], image) for index, image in expected.items())
    rest = epoch(data, 1, start=1)
    assert torch.equal(join(rest, "images"), join(whole[1:], "images"))
    ranks = [
        [
            b
            for micros in data.train_steps(1, batch_size=6, grad_accum_steps=1, rank=r, world=2, drop_last=False)
            for b in micros
        ]
        for r in range(2)
    ]
    for number, batch in enumerate(whole):
        assert torch.equal(join([plan[number] for plan in ranks], "images"), batch.images)
    for other in (views(epoch(data, 2)), views(epoch(load(chosen, seed=1), 1))):
        assert not any(torch.equal(other[index], image) for index, image in expected.items())


def test_workers_change_nothing(root: Path) -> None:
    chosen = options(root, mixup=0.5)
    alone, helped = load(chosen), load(replace(chosen, num_workers=2))
    for number in range(2):
        for left, right in zip(epoch(alone, number), epoch(helped, number), strict=True):
            assert torch.equal(left.images, right.images)
            assert torch.equal(left.index, right.index)
            assert torch.equal(left.labels, right.labels)
    left, right = (list(d.eval_batches("test", batch_size=4, rank=0, world=1)) for d in (alone, helped))
    assert torch.equal(join(left, "images"), join(right, "images"))


@pytest.mark.parametrize("workers", [0, 2])
def test_global_random_state_is_neither_used_nor_changed(root: Path, workers: int) -> None:
    data = load(options(root, num_workers=workers))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = join(epoch(data), "images")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(join(epoch(data), "images"), first)


def test_mixup_and_cutout_of_files(root: Path) -> None:
    pure, mixed = load(options(root, cutout=4)), load(options(root, cutout=4, mixup=0.5))
    single = views(epoch(pure))
    for batch in epoch(mixed):
        partner = mixup_partners(0, 0, batch.index, mixed.positions["train"])
        weight = mixup_weights(0, 0, batch.index, 0.5)
        assert batch.partner_labels is not None
        assert torch.equal(batch.partner_labels, mixed.labels["train"][partner])
        for k, image in enumerate(batch.images):
            expected = weight[k] * single[int(batch.index[k])] + (1 - weight[k]) * single[int(partner[k])]
            assert torch.allclose(image, expected, atol=1e-6)


def test_bytes_of_a_view_are_augmented_and_those_of_evaluation_are_not(root: Path) -> None:
    chosen = options(root, auto_augment="trivialaugment", mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25])
    plain, data = load(options(root)), load(chosen)
    assert (data.spec.mean, data.spec.std) == ((0.5,) * 3, (0.25,) * 3)
    for batch, other in zip(epoch(plain, 2), epoch(data, 2), strict=True):
        pixels = (batch.images * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]) * 255
        changed = Augmentation.of(chosen)(pixels.round().to(torch.uint8), batch.index, seed=0, epoch=2)
        torch.testing.assert_close(other.images, (changed / 255 - 0.5) / 0.25)
    wanted = [(batch.images * 0.25 + 0.5) for batch in data.eval_batches("test", batch_size=50, rank=0, world=1)]
    for batch, pixels in zip(plain.eval_batches("test", batch_size=50, rank=0, world=1), wanted, strict=True):
        shown = batch.images * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
        torch.testing.assert_close(shown, pixels)


def test_flip_is_an_option(root: Path) -> None:
    still = options(root, flip=False, min_scale=1.0)
    mirrored = [views(epoch(load(replace(still, flip=flip)))) for flip in (False, True)]
    assert any(not torch.equal(mirrored[0][index], mirrored[1][index]) for index in mirrored[0])


def test_images_below_the_class_folder_and_other_files(tmp_path: Path) -> None:
    build(tmp_path, test="val")
    for k in range(4):
        write_image(tmp_path / "train" / "cat" / "images" / f"deep{k}.JPEG", k)
    (tmp_path / "train" / "cat" / "boxes.txt").write_text("0 0 1 1")
    (tmp_path / "train" / "cat" / ".hidden.png").write_text("")
    (tmp_path / "train" / "notes.txt").write_text("loose file")
    data = load(options(tmp_path))
    assert sum(data.labels["train"] == 0) == 12
    assert data.sizes["test"] == 9
    assert len(epoch(data, batch_size=64)[0]) == data.sizes["train"]


def test_root_is_required_and_must_hold_the_layout(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.root is missing"):
        load(ImageFolder())
    with pytest.raises(UserError, match=r"train is not a folder: data\.root"):
        load(options(tmp_path))
    for name in ("cat", "dog"):
        write_image(tmp_path / "train" / name / "0.png", 0)
    with pytest.raises(UserError, match="val is not a folder"):
        load(options(tmp_path))
    (tmp_path / "test").mkdir()
    with pytest.raises(UserError, match="test has no class folders"):
        load(options(tmp_path))


def test_tiny_imagenet_val_as_published_is_explained(tmp_path: Path) -> None:
    build(tmp_path, test="val")
    val = tmp_path / "val"
    (val / "images").mkdir()
    for path in sorted(val.rglob("*.png")):
        path.rename(val / "images" / f"{path.parent.name}_{path.name}")
    for name in ("cat", "dog", "owl"):
        (val / name).rmdir()
    (val / "val_annotations.txt").write_text("val_0.JPEG\tcat\n")
    with pytest.raises(
        UserError, match=r"val has all images in images/: move each into .*val/<class>/.*val_annot"
    ) as error:
        load(options(tmp_path))
    one_line(error)


def with_val(root: Path) -> Path:
    for k, name in enumerate(("cat", "dog", "owl")):
        for j in range(2):
            write_image(root / "val" / name / f"{j}.png", 2000 + 10 * k + j)
    return root


def test_a_val_folder_is_the_validation_split(tmp_path: Path) -> None:
    without = load(options(build(tmp_path), val_fraction=0.0))
    data = load(options(with_val(tmp_path)))
    assert data.sizes == {"train": 24, "val": 6, "test": 9}
    assert data.notes == [
        f"{tmp_path / 'val'} is the validation split, 6 images: data.val_fraction has no effect",
    ]
    (batch,) = data.eval_batches("val", batch_size=50, rank=0, world=1)
    assert batch.labels.tolist() == [0, 0, 1, 1, 2, 2]
    (tmp_path / "test").rename(tmp_path / "train_test")
    (tested,) = load(options(tmp_path)).eval_batches("test", batch_size=50, rank=0, world=1)
    assert torch.equal(batch.images, tested.images)
    old, new = views(epoch(without, 1)), views(epoch(data, 1))
    assert old.keys() == new.keys()
    assert all(torch.equal(old[index], image) for index, image in new.items())
    assert data.train_labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8 + [-1] * 6


def test_partitions_of_the_training_images_beside_a_val_folder(tmp_path: Path) -> None:
    with_val(build(tmp_path))
    parts = [load(options(tmp_path, num_partitions=2, partition=k)) for k in range(2)]
    whole = torch.cat([data.positions["train"] for data in parts]).sort().values
    assert whole.tolist() == list(range(24))
    assert all(data.positions["val"].tolist() == list(range(24, 30)) for data in parts)
    small = load(options(tmp_path, train_fraction=0.25, exclude_classes=[1], mixup=0.5))
    assert small.sizes == {"train": 4, "val": 6, "test": 9}
    assert all(index < 24 for index in views(epoch(small, batch_size=4)))


@pytest.mark.parametrize("linked", ["test", "val"])
def test_val_and_test_in_one_folder_are_the_test_set(tmp_path: Path, linked: str) -> None:
    build(tmp_path, test="val" if linked == "test" else "test")
    (tmp_path / linked).symlink_to("val" if linked == "test" else "test")
    data = load(options(tmp_path))
    assert data.sizes == {"train": 18, "val": 6, "test": 9}
    assert data.notes == []


def test_a_validation_folder_of_another_name_is_mentioned(tmp_path: Path) -> None:
    with_val(build(tmp_path)).joinpath("val").rename(tmp_path / "valid")
    assert load(options(tmp_path)).notes == [f"{tmp_path / 'valid'} is not used: rename it to val to validate on it"]


@pytest.mark.parametrize("flat", ["test", "test/images"])
def test_a_test_set_without_labels_is_explained_and_the_advice_helps(tmp_path: Path, flat: str) -> None:
    build(tmp_path, test="val")
    write_image(tmp_path / flat / "ILSVRC2012_test_00000001.JPEG", 0)
    with pytest.raises(
        UserError, match=r"labels are not public: move .*test away .* and .*val is the test set"
    ) as error:
        load(options(tmp_path))
    one_line(error)
    (tmp_path / "other").mkdir()
    for name in ("train", "val"):
        (tmp_path / "other" / name).symlink_to(tmp_path / name)
    assert load(options(tmp_path / "other")).sizes["test"] == 9
    (tmp_path / "test").rename(tmp_path / "unlabeled")
    assert load(options(tmp_path)).sizes["test"] == 9


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:8, :10] = 255
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(pixels).save(path, exif=exif, **{"lossless": True} if suffix == "webp" else {})
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(np.asarray(read_image(str(path))), upright)
    assert upright.shape[:2] == ((20, 30) if orientation < 5 else (30, 20))


def test_damaged_exif_data_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    Image.new("RGB", (30, 20)).save(path, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    assert read_image(str(path)).size == (30, 20)


def png(depth: int, color: int, channels: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 4, 4, depth, color, 0, 0, 0)
    rows = (b"\0" + bytes(range(4 * channels * depth // 8))) * 4
    start = b"\x89PNG\r\n\x1a\n"
    return start + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(depth: int) -> bytes:
    tags = [(256, 3, 1, 4), (257, 3, 1, 4), (258, 3, 3, 122), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 128)]
    tags += [(277, 3, 1, 3), (278, 3, 1, 4), (279, 4, 1, 48 * depth // 8)]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<HHH", *[depth] * 3) + bytes(48 * depth // 8)


DEEP = {"gray.png": png(16, 0, 1), "color.png": png(16, 2, 3), "gray and alpha.png": png(16, 4, 2)}
DEEP |= {"alpha.png": png(16, 6, 4), "color.tif": tiff(16), "color.ppm": b"P6 4 4 65535\n" + bytes(96)}
DEEP |= {"10 bits.ppm": b"P6 4 4 1023\n" + bytes(96), "gray.pgm": b"P5 4 4 65535\n" + bytes(32)}
DEEP |= {"plain.ppm": b"P3 4 4 300\n" + b"299 " * 48}
FLAT = {"gray.png": png(8, 0, 1), "color.png": png(8, 2, 3), "alpha.png": png(8, 6, 4), "color.tif": tiff(8)}
FLAT |= {"color.ppm": b"P6 4 4 255\n" + bytes(48), "7 bits.ppm": b"P6 4 4 127\n" + bytes(48)}


@pytest.mark.parametrize("name", DEEP)
def test_more_than_8_bits_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(DEEP[name])
    with Image.open(tmp_path / name) as image:
        image.load()  # a whole image
    with pytest.raises(UserError, match=r"has (9|10|16) bits per channel: convert it to 8 bits") as error:
        read_image(str(tmp_path / name))
    assert str(tmp_path / name) in one_line(error)


@pytest.mark.parametrize("name", FLAT)
def test_8_bits_are_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FLAT[name])
    assert read_image(str(tmp_path / name)).size == (4, 4)


@pytest.mark.parametrize("part", ["train", "test"])
def test_empty_class_is_named(tmp_path: Path, part: str) -> None:
    build(tmp_path)
    for path in (tmp_path / part / "dog").iterdir():
        path.rename(path.with_suffix(".txt"))
    with pytest.raises(UserError, match=rf"{part}/dog has no images") as error:
        load(options(tmp_path))
    one_line(error)


def test_classes_must_match(tmp_path: Path) -> None:
    build(tmp_path)
    with pytest.raises(UserError, match=r"data\.classes=4, but .*train has 3 class folders"):
        load(options(tmp_path, classes=4))
    (tmp_path / "test" / "owl").rename(tmp_path / "test" / "yak")
    with pytest.raises(UserError, match="only in one of them: owl, yak"):
        load(options(tmp_path))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("fault", ["text", "empty", "cut png", "cut jpeg", "gone", "16 bits"])
def test_unreadable_image_is_named_in_one_line(tmp_path: Path, fault: str, workers: int) -> None:
    build(tmp_path)
    path = tmp_path / "train" / "dog" / ("3.jpg" if fault == "cut jpeg" else "0.png")
    data = load(options(tmp_path, num_workers=workers, val_fraction=0.0))
    if fault == "text":
        path.write_text("this is not an image")
    elif fault == "empty":
        path.write_bytes(b"")
    elif fault == "gone":
        path.unlink()
    elif fault == "16 bits":
        Image.fromarray(np.full((30, 30), 40_000, np.uint16)).save(path)
    else:
        os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(UserError) as error:
        epoch(data)
    assert str(path) in one_line(error)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_a_file_that_looks_like_an_image_starts_no_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path / 'started'}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    path = tmp_path / f"x.{suffix}"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(UserError, match=rf"cannot read the image {path}") as error:
        read_image(str(path))
    one_line(error)
    assert not (tmp_path / "started").exists()
    with Image.open(path) as image, pytest.raises(OSError, match="cannot identify"):
        image.load()
    assert (tmp_path / "started").exists()


@pytest.mark.parametrize("form", FORMATS)
def test_what_a_file_is_counts_and_not_its_name(tmp_path: Path, form: str) -> None:
    Image.new("RGB", (9, 9), (255, 0, 0)).save(tmp_path / "x.jpg", form)
    red, green, blue = np.asarray(read_image(str(tmp_path / "x.jpg"))).mean((0, 1))
    assert red > 250
    assert green < 5
    assert blue < 5


def test_unreadable_test_image_is_named(tmp_path: Path) -> None:
    build(tmp_path)
    path = tmp_path / "test" / "owl" / "1.png"
    path.write_bytes(path.read_bytes()[:60])
    data = load(options(tmp_path))
    with pytest.raises(UserError, match=r"owl/1\.png"):
        list(data.eval_batches("test", batch_size=4, rank=0, world=1))


@pytest.mark.parametrize("workers", [0, 2])
def test_auxiliary_batches_are_other_views_same_class_samples_and_the_previous_step(root: Path, workers: int) -> None:
    data = load(options(root, num_workers=workers))
    names = ("same_class", "previous", "view1")
    batches = epoch(data, 1, aux_batches=names)
    own, others = views(batches), views([batch.aux_batches["view1"] for batch in batches])
    assert own.keys() == others.keys()
    assert not any(torch.equal(own[position], others[position]) for position in own)
    for batch in batches:
        mates = batch.aux_batches["same_class"]
        assert torch.equal(mates.labels, batch.labels)
        assert not (mates.index == batch.index).any()
        assert all(torch.equal(image, others[int(i)]) for image, i in zip(mates.images, mates.index, strict=True))
    for before, batch in itertools.pairwise(batches):
        assert torch.equal(batch.aux_batches["previous"].index, before.index)
        assert torch.equal(batch.aux_batches["previous"].images, before.aux_batches["view1"].images)
    again = views(
        [b.aux_batches["view1"] for b in epoch(data, 1, batch_size=5, grad_accum_steps=2, aux_batches=["view1"])]
    )
    assert all(torch.equal(again[position], others[position]) for position in others)
    assert len(epoch(data, 0, aux_batches=["previous"])[0].aux_batches["previous"]) == 0


def test_views_share_what_cutmix_takes_from_whom(root: Path) -> None:
    data = load(options(root, cutmix=1.0, cutmix_probability=1.0))
    for batch in epoch(data, aux_batches=["view1"]):
        other = batch.aux_batches["view1"]
        assert batch.mix is not None
        assert batch.partner_labels is not None
        assert other.mix is not None
        assert torch.equal(batch.mix, other.mix)
        assert torch.equal(batch.partner_labels, other.partner_labels)  # type: ignore[arg-type]


def test_images_without_labels_are_those_of_a_folder_at_any_depth(root: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("b.png", "a/c.png", "a/d.jpg")):
        write_image(tmp_path / "pool" / name, 5000 + number)
    plain, data = (open_data(options(root, unlabelled=at), seed=0, device=CPU) for at in (None, str(tmp_path / "pool")))
    assert torch.equal(data.positions["train"], torch.cat([plain.positions["train"], torch.arange(24, 27)]))
    assert torch.equal(data.positions["val"], plain.positions["val"])
    assert data.digest != plain.digest
    (batch,) = data.seen_in(0, [torch.arange(24, 27)])
    assert batch.labels.tolist() == [-1, -1, -1]
    (own,), (same,) = (each.seen_in(2, [plain.positions["train"]]) for each in (plain, data))
    assert torch.equal(own.images, same.images)
    of_folder = ("data=image_folder", f"data.root={root}", "scheme=offline")
    hashes = [
        config_hash(cases.load(*of_folder, *words))
        for words in ([], ["data.unlabelled=null"], [f"data.unlabelled={tmp_path / 'pool'}"])
    ]
    (tmp_path / "pool").rename(tmp_path / "moved")
    moved = cases.load(*of_folder, f"data.unlabelled={tmp_path / 'moved'}")
    assert hashes[0] == hashes[1] != hashes[2] == config_hash(moved)
    (tmp_path / "moved" / "b.png").unlink()
    assert config_hash(moved) != hashes[2]


def test_a_folder_without_images_is_refused(root: Path, tmp_path: Path) -> None:
    for at, why in ((tmp_path, "has no images"), (tmp_path / "none", "is not a folder")):
        with pytest.raises(UserError, match=why):
            open_data(options(root, unlabelled=str(at)), seed=0, device=CPU)
