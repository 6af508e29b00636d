"""Augmentation of byte images: each operation against torchvision on Pillow images, and the draws."""

from __future__ import annotations

import colorsys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2

from kdschemes.config.data import Digits
from kdschemes.data.augment import JITTER, LEVELS, OPERATIONS, SIGNED, Augmentation, apply, jitter_draws, magnitudes
from kdschemes.data.views import Stream
from kdschemes.seeding import integers, uniform

NAMES = list(OPERATIONS)
CLASSES = {False: v2.RandAugment(), True: v2.TrivialAugmentWide()}
RANDOM = Augmentation("randaugment", 2, 20)
TRIVIAL = Augmentation("trivialaugment")
JITTERED = Augmentation(jitter=(0.4, 0.4, 0.4, 0.1))


def noise(count: int, channels: int = 3, height: int = 12, width: int = 17) -> Tensor:
    """Smooth, dark, flat and random images."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)
    images[1::4] = (torch.arange(height * width).view(height, width) % 256).to(torch.uint8)
    images[2::4] //= 5
    images[3::4] = images[3::4, :, :1, :1]
    return images


def picture(image: Tensor) -> Image.Image:
    return Image.fromarray(image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy())


def bytes_of(image: Image.Image) -> Tensor:
    array = torch.from_numpy(np.array(image))
    return array[None] if array.ndim == 2 else array.permute(2, 0, 1)


def theirs(image: Tensor, name: str, strength: float, wide: bool) -> Tensor:
    """What torchvision's class does with an image of Pillow's."""
    transform = CLASSES[wide]
    arguments = {"interpolation": transform.interpolation, "fill": transform._fill}
    return bytes_of(transform._apply_image_or_video_transform(picture(image), name, strength, **arguments))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_operations_are_those_of_torchvision_on_pillow_images(name: str, wide: bool, channels: int) -> None:
    images = noise(8, channels)
    table = magnitudes(12, 17, wide=wide)[NAMES.index(name)]
    for level in (0, 7, 16, 30):
        for sign in (1, -1) if NAMES.index(name) in SIGNED else (1,):
            strength = sign * table[level]
            got = OPERATIONS[name](images, strength.repeat(8))
            for image, ours in zip(images, got, strict=True):
                assert torch.equal(ours, theirs(image, name, float(strength), wide)), (level, sign)


@pytest.mark.parametrize("wide", [False, True])
def test_operations_and_magnitudes_are_those_of_torchvision(wide: bool) -> None:
    space = CLASSES[wide]._AUGMENTATION_SPACE
    table = magnitudes(12, 17, wide=wide)
    assert list(space) == NAMES
    for row, (values, signed) in enumerate(space.values()):
        expected = values(LEVELS, 12, 17)
        assert signed is (row in SIGNED)
        expected = torch.zeros(LEVELS) if expected is None else expected.double()
        assert torch.equal(table[row], expected.trunc() if NAMES[row].startswith("Translate") else expected)


def test_randaugment_draws_operations_and_signs_from_the_counter() -> None:
    images, index = noise(16), torch.arange(100, 116)
    got = RANDOM(images, index, seed=3, epoch=5)
    table = magnitudes(12, 17, wide=False)
    for image, ours, position in zip(images, got, index, strict=True):
        for number in range(2):
            draw = position[None] * 2 + number
            operation = int(integers(3, 5, draw, Stream.AUGMENT_OPERATION, 14))
            negative = operation in SIGNED and bool(uniform(3, 5, draw, Stream.AUGMENT_SIGN) < 0.5)
            image = theirs(image, NAMES[operation], float(table[operation, 20]) * (-1) ** negative, False)
        assert torch.equal(ours, image)


def test_trivialaugment_draws_one_operation_and_its_level() -> None:
    images, index = noise(16), torch.arange(16)
    got = TRIVIAL(images, index, seed=3, epoch=5)
    table = magnitudes(12, 17, wide=True)
    for image, ours, position in zip(images, got, index, strict=True):
        operation = int(integers(3, 5, position[None], Stream.AUGMENT_OPERATION, 14))
        level = int(integers(3, 5, position[None], Stream.AUGMENT_LEVEL, LEVELS))
        negative = operation in SIGNED and bool(uniform(3, 5, position[None], Stream.AUGMENT_SIGN) < 0.5)
        strength = float(table[operation, level]) * (-1) ** negative
        assert torch.equal(ours, theirs(image, NAMES[operation], strength, True))


def test_hue_is_turned_like_colorsys_and_gray_stays() -> None:
    images = noise(4, height=5, width=5)
    turn = torch.tensor([0.1, -0.5, 0.0, 0.3], dtype=torch.float64)
    got = JITTER[3](images, turn)
    for image, ours, part in zip(images, got, turn.tolist(), strict=True):
        for before, after in zip(image.flatten(1).T.tolist(), ours.flatten(1).T.tolist(), strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in before))
            wanted = [255 * channel for channel in colorsys.hsv_to_rgb((hue + part) % 1, saturation, value)]
            assert after == pytest.approx(wanted, abs=0.5001)
    assert torch.equal(got[2], images[2])
    assert torch.equal(JITTER[3](images[:, :1], turn), images[:, :1])


def test_jitter_draws_each_change_within_its_bounds_in_a_random_order() -> None:
    strengths = (0.4, 1.5, 0.0, 0.1)
    order, change = jitter_draws(torch.arange(6_000), strengths, seed=1, epoch=0)
    assert torch.equal(order.sort(1).values, torch.arange(4).expand(6_000, 4))
    orders = torch.bincount(order @ torch.tensor([64, 16, 4, 1]))
    assert (orders > 0).sum() == 24
    assert stats.chisquare(orders[orders > 0].numpy()).pvalue > 1e-3
    for drawn, (low, high) in zip(change.T.numpy(), [(-0.4, 0.4), (-1.0, 1.5), (0.0, 0.0), (-0.1, 0.1)], strict=True):
        assert low <= drawn.min() <= drawn.max() <= high
        assert low == high or stats.kstest(drawn, "uniform", (low, high - low)).pvalue > 1e-3


def test_jitter_is_that_of_torchvision_with_the_same_draws() -> None:
    images, strengths = noise(16), (0.4, 0.8, 1.2)
    got = Augmentation(jitter=strengths)(images, torch.arange(16), seed=2, epoch=3)
    order, change = jitter_draws(torch.arange(16), strengths, seed=2, epoch=3)
    jitter = v2.ColorJitter(*strengths)
    for image, ours, turn, strength in zip(images, got, order, (1 + change).tolist(), strict=True):
        names = ("brightness_factor", "contrast_factor", "saturation_factor")
        chosen = {"fn_idx": turn.tolist(), "hue_factor": None, **dict(zip(names, strength, strict=True))}
        assert torch.equal(ours, bytes_of(jitter.transform(picture(image), chosen)))


def test_operations_are_equally_frequent() -> None:
    drawn = integers(0, 0, torch.arange(50_000), Stream.AUGMENT_OPERATION, 14)
    assert stats.chisquare(torch.bincount(drawn, minlength=14).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("augment", [RANDOM, TRIVIAL, JITTERED])
def test_an_image_does_not_depend_on_the_others_and_changes_with_seed_epoch_and_index(augment: Augmentation) -> None:
    images, index = noise(64), torch.arange(64)
    kept = images.clone()
    whole = augment(images, index, seed=1, epoch=2)
    assert torch.equal(images, kept)
    assert whole.dtype == torch.uint8
    assert torch.equal(augment(images, index, seed=1, epoch=2), whole)
    for rows in (torch.tensor([5]), torch.tensor([40, 3, 17]), torch.arange(0)):
        assert torch.equal(augment(images[rows], index[rows], seed=1, epoch=2), whole[rows])
    for seed, epoch, shift in ((2, 2, 0), (1, 3, 0), (1, 2, 64)):
        other = augment(images, index + shift, seed=seed, epoch=epoch)
        assert (other != whole).flatten(1).any(1).double().mean() > 0.4


def test_without_options_bytes_are_passed_on() -> None:
    images = noise(4)
    nothing = Augmentation.of(Digits())
    assert not nothing
    assert nothing(images, torch.arange(4), seed=0, epoch=0) is images
    assert Augmentation.of(replace(Digits(), color_jitter=0.4)).jitter == (0.4, 0.4, 0.4)
    assert Augmentation.of(replace(Digits(), auto_augment="randaugment")) == Augmentation("randaugment", 2, 9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("augment", [RANDOM, TRIVIAL, JITTERED])
def test_the_bits_are_the_same_on_a_gpu(augment: Augmentation) -> None:
    images, index = noise(256), torch.arange(256)
    there = augment(images.cuda(), index.cuda(), seed=1, epoch=2)
    assert torch.equal(there.cpu(), augment(images, index, seed=1, epoch=2))


def test_apply_gives_each_row_its_operation() -> None:
    images = noise(3)
    got = apply(images, torch.tensor([0, 6, 0]), torch.tensor([0.0, -0.5, 0.0]).double(), list(OPERATIONS.values()))
    assert torch.equal(got[[0, 2]], images[[0, 2]])
    assert torch.equal(got[1], (images[1] // 2))
