"""The view of a sample: a pure function of (seed, epoch, index), computed for a whole batch at once.

Random numbers come from a counter-based generator (the output function of SplitMix64, Steele et al. 2014), which has no
state to save or share: batch size, number of processes and resuming cannot change a view.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from kdschemes.seeding import integers, mix64, uniform


class Stream(IntEnum):
    """Independent streams of random numbers, by purpose."""

    ORDER = 0
    ROW = 1
    COLUMN = 2
    FLIP = 3
    CUTOUT_ROW = 4
    CUTOUT_COLUMN = 5
    PARTNER = 6
    MIX = 7
    SPLIT = 8
    DECODE = 9
    CLASSMATE = 10
    CUTMIX = 11
    CUTMIX_BOX = 12
    CUTMIX_ROW = 13
    CUTMIX_COLUMN = 14
    PART = 15
    PART_SHARE = 16
    PART_CLASS = 17
    FRACTION = 18
    BALANCED_CLASS = 19
    BALANCED_SLOT = 20
    AUGMENT_OPERATION = 21
    AUGMENT_SIGN = 22
    AUGMENT_LEVEL = 23
    JITTER = 24
    JITTER_ORDER = 25
    ERASE = 26
    ERASE_AREA = 27
    ERASE_RATIO = 28
    ERASE_ROW = 29
    ERASE_COLUMN = 30


def view_seed(seed: int, number: int) -> int:
    """Return the seed of view `number`: the run's own for view 0, different ones for views 1, 2, ..."""
    return mix64(seed, number) if number else seed


def epoch_order(seed: int, epoch: int, positions: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Return `positions` in the epoch's random order."""
    return positions[torch.argsort(uniform(seed, epoch, positions, Stream.ORDER), stable=True)]


def balanced_order(seed: int, epoch: int, positions: Int[Tensor, " n"], labels: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Return as many positions, of each class with label in `labels` equally many (up to one), in random order.

    Those of a class come from its random order of the epoch: a part of a large class, all of a small one repeatedly.
    The view of a sample is the same each time.
    """
    shuffled = torch.argsort(uniform(seed, epoch, positions, Stream.ORDER), stable=True)
    classes = torch.bincount(labels).nonzero().flatten()
    count, rest = divmod(len(positions), len(classes))
    more = torch.argsort(uniform(seed, epoch, classes, Stream.BALANCED_CLASS), stable=True)[:rest].tolist()
    drawn = []
    for number, label in enumerate(classes):
        of_class = shuffled[labels[shuffled] == label]
        drawn.append(of_class[torch.arange(count + (number in more)) % len(of_class)])
    slots = torch.arange(len(positions))
    return positions[torch.cat(drawn)[torch.argsort(uniform(seed, epoch, slots, Stream.BALANCED_SLOT), stable=True)]]


def crop(
    images: UInt8[Tensor, "all c tall wide"],
    index: Int[Tensor, " n"],
    row: Int[Tensor, " n"],
    column: Int[Tensor, " n"],
    flip: Bool[Tensor, " n"],
    size: int,
) -> UInt8[Tensor, "n c {size} {size}"]:
    """Crop squares of side `size` with corner (row, column) from `images[index]`; mirror them where `flip`."""
    _, channels, tall, wide = images.shape
    line = torch.arange(size, device=images.device)
    plane = index[:, None] * channels + torch.arange(channels, device=images.device)
    rows = plane[:, :, None] * tall + (row[:, None] + line)[:, None, :]
    strips = images.view(-1, wide).index_select(0, rows.flatten()).view(len(index), channels, size, wide)
    columns = column[:, None] + torch.where(flip[:, None], size - 1 - line, line)
    return strips.gather(3, columns[:, None, None, :].expand(-1, channels, size, -1))


def normalize(
    images: UInt8[Tensor, "n c h w"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "n c h w"]:
    """Return `(images / 255 - mean) / std` per channel in float32, the same bits on every device."""
    shift, scale = (torch.tensor(values, device=images.device).view(1, -1, 1, 1) for values in (mean, std))
    # A tensor: CUDA multiplies by the rounded reciprocal of a number.
    return images.float().div_(torch.tensor(255.0, device=images.device)).sub_(shift).div_(scale)


def cutout(
    images: Float[Tensor, "n c h w"], index: Int[Tensor, " n"], *, seed: int, epoch: int, side: int
) -> Float[Tensor, "n c h w"]:
    """Mask a square of `side` pixels in each image, in place, with 0, the mean color (DeVries & Taylor 2017, Cutout).

    The center is uniform over all pixels, so the square may extend beyond the border.
    """

    def inside(length: int, stream: Stream) -> Bool[Tensor, "n length"]:
        first = integers(seed, epoch, index, stream, length) - side // 2
        line = torch.arange(length, device=images.device)
        return (line >= first[:, None]) & (line < first[:, None] + side)

    height, width = images.shape[2:]
    rows, columns = inside(height, Stream.CUTOUT_ROW), inside(width, Stream.CUTOUT_COLUMN)
    return images.masked_fill_((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


ERASED = (0.02, 0.33)
"""Random erasing: the smallest and largest fraction of the area, as in torchvision."""

ASPECT = (0.3, 3.3)
"""The smallest and largest height of a box divided by its width."""

TRIES = 10
"""Boxes that are drawn at most; if none fits into the image, it is unchanged."""


def random_erasing(
    images: Float[Tensor, "n c h w"], index: Int[Tensor, " n"], *, seed: int, epoch: int, probability: float
) -> Float[Tensor, "n c h w"]:
    """Mask a box in a fraction of the images, in place, with 0, the mean color (Zhong et al. 2020, Random Erasing).

    Its area is uniform in `ERASED` of the image's, the logarithm of its aspect ratio in that of `ASPECT`, its place
    uniform among those inside the image.
    """
    height, width = images.shape[2:]
    index = index.cpu()
    counters = (index[:, None] * TRIES + torch.arange(TRIES)).flatten()

    def between(least: float, most: float, stream: Stream) -> Float[Tensor, "n tries"]:
        return least + (most - least) * uniform(seed, epoch, counters, stream).view(-1, TRIES)

    area = height * width * between(*ERASED, Stream.ERASE_AREA)
    ratio = between(math.log(ASPECT[0]), math.log(ASPECT[1]), Stream.ERASE_RATIO).exp()
    tall, wide = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
    fits = (tall < height) & (wide < width)
    first = fits.long().argmax(1, keepdim=True)
    tall, wide = (sides.gather(1, first)[:, 0] for sides in (tall, wide))
    erased = fits.any(1) & (uniform(seed, epoch, index, Stream.ERASE) < probability)

    def inside(length: int, side: Int[Tensor, " n"], stream: Stream) -> Bool[Tensor, "n length"]:
        start = (uniform(seed, epoch, index, stream) * (length - side + 1)).long()
        line = torch.arange(length)
        return (line >= start[:, None]) & (line < (start + side)[:, None]) & erased[:, None]

    rows = inside(height, tall, Stream.ERASE_ROW).to(images.device)
    columns = inside(width, wide, Stream.ERASE_COLUMN).to(images.device)
    return images.masked_fill_((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


def same_class_samples(
    seed: int,
    epoch: int,
    index: Int[Tensor, " n"],
    positions: Int[Tensor, " train"],
    labels: Int[Tensor, " train"],
) -> Int[Tensor, " n"]:
    """Return another sample of the same class for each sample, uniform over those in `positions`.

    `labels` are the labels of `positions`. If a class has only one sample, that sample is returned.
    """
    by_class = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels)
    first = counts.cumsum(0) - counts
    rank = torch.empty_like(by_class)
    rank[by_class] = torch.arange(len(labels)) - first[labels[by_class]]
    place = torch.searchsorted(positions, index)
    own, others = labels[place], counts[labels[place]] - 1
    share = uniform(seed, epoch, index, Stream.CLASSMATE)
    chosen = (share * others).long()
    chosen += (chosen >= rank[place]) & (others > 0)
    return positions[by_class[first[own] + chosen]]


def has_box(seed: int, epoch: int, index: Int[Tensor, " n"], probability: float) -> Bool[Tensor, " n"]:
    """Return whether CutMix pastes a box into each sample."""
    return uniform(seed, epoch, index, Stream.CUTMIX) < probability


def cutmix(
    images: Float[Tensor, "n c h w"],
    partners: Float[Tensor, "n c h w"],
    index: Int[Tensor, " n"],
    *,
    seed: int,
    epoch: int,
    concentration: float,
    probability: float,
) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, " n"]]:
    """Paste a box from each partner into its image (Yun et al. 2019, CutMix); return images and remaining fractions.

    The box covers 1 - lambda of the area before it is clipped at the border, lambda ~ Beta(a, a), a = `concentration`;
    its center is uniform over all pixels. With probability 1 - `probability` an image is unchanged. The remaining
    fraction is counted in pixels.
    """
    height, width = images.shape[2:]
    rest = _beta(seed, epoch, index, concentration, Stream.CUTMIX_BOX)
    mixed = has_box(seed, epoch, index, probability)

    def inside(length: int, stream: Stream) -> Bool[Tensor, "n length"]:
        side = (length * (1.0 - rest).sqrt()).long()
        first = integers(seed, epoch, index, stream, length) - side // 2
        line = torch.arange(length, device=images.device)
        return (line >= first[:, None]) & (line < (first + side)[:, None])

    rows, columns = inside(height, Stream.CUTMIX_ROW), inside(width, Stream.CUTMIX_COLUMN)
    box = rows[:, :, None] & columns[:, None, :] & mixed[:, None, None]
    left = 1.0 - box.sum((1, 2)) / (height * width)
    return torch.where(box[:, None], partners, images), left


def mixup_partners(
    seed: int, epoch: int, index: Int[Tensor, " n"], positions: Int[Tensor, " train"]
) -> Int[Tensor, " n"]:
    """Return each sample's mixing partner, uniform over `positions`."""
    return positions[integers(seed, epoch, index, Stream.PARTNER, len(positions))]


def mixup_weights(seed: int, epoch: int, index: Int[Tensor, " n"], concentration: float) -> Float[Tensor, " n"]:
    """Return each sample's own weight ~ Beta(a, a), a = `concentration` (Zhang et al. 2018, mixup)."""
    return _beta(seed, epoch, index, concentration, Stream.MIX).float()


def _beta(seed: int, epoch: int, index: Int[Tensor, " n"], concentration: float, stream: Stream) -> Float[Tensor, " n"]:
    """Return one number ~ Beta(a, a) per sample, by inverting the CDF on the CPU in float64."""
    from scipy.special import betaincinv  # a library that other views do not need

    share = uniform(seed, epoch, index.cpu(), stream).numpy()
    return torch.from_numpy(betaincinv(concentration, concentration, share)).to(index.device)
