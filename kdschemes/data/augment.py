"""RandAugment, TrivialAugment and color jitter of whole batches of byte images, in Pillow's arithmetic.

Every operation takes its strength per sample and computes in integers, or in single steps that are rounded one way: the
result does not depend on the batch, the number of threads or the device, and is that of torchvision's classes on Pillow
images. Strengths and orders are drawn by the counter-based generator of `views`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from kdschemes.config.data import Data
from kdschemes.data.views import Stream
from kdschemes.seeding import integers, uniform

LEVELS = 31
"""The number of magnitudes, from none to the largest; as in torchvision."""


@dataclass(frozen=True)
class Augmentation:
    """The changes of colors and shapes that a data set's options choose, for training images as bytes.

    `method` is "none", "randaugment" (Cubuk et al. 2020): `operations` operations of `magnitude`, or "trivialaugment"
    (Müller & Hutter 2021, its wide space): one operation of a random magnitude. `jitter` are the strengths of
    brightness, contrast, saturation and hue, in random order: factors from 1 - s to 1 + s (at least 0), and a turn of
    the hue from -s to s of a circle.
    """

    method: str = "none"
    operations: int = 2
    magnitude: int = 9
    jitter: tuple[float, ...] = ()

    @classmethod
    def of(cls, options: Data) -> Augmentation:
        """Return what the options of a data set choose."""
        strength = options.color_jitter
        jitter = tuple(strength) if isinstance(strength, list) else (strength,) * 3 if strength else ()
        return cls(options.auto_augment, options.randaugment_ops, options.randaugment_magnitude, jitter)

    def __bool__(self) -> bool:
        return self.method != "none" or any(self.jitter)

    def __call__(
        self, images: UInt8[Tensor, "n c h w"], index: Int[Tensor, " n"], *, seed: int, epoch: int
    ) -> UInt8[Tensor, "n c h w"]:
        """Return the changed images, a function of (seed, epoch, index); `seed` is that of the view."""
        index = index.cpu()
        if self.method == "randaugment":
            for number in range(self.operations):
                draws = index * self.operations + number
                level = torch.full_like(index, self.magnitude)
                images = _augment(images, draws, level, seed=seed, epoch=epoch, wide=False)
        elif self.method == "trivialaugment":
            level = integers(seed, epoch, index, Stream.AUGMENT_LEVEL, LEVELS)
            images = _augment(images, index, level, seed=seed, epoch=epoch, wide=True)
        return _jitter(images, index, self.jitter, seed=seed, epoch=epoch) if any(self.jitter) else images


def _augment(images: Tensor, draws: Tensor, level: Tensor, *, seed: int, epoch: int, wide: bool) -> Tensor:
    """Apply one random operation to each image, at its level."""
    operation = integers(seed, epoch, draws, Stream.AUGMENT_OPERATION, len(OPERATIONS))
    negative = uniform(seed, epoch, draws, Stream.AUGMENT_SIGN) < 0.5
    strength = magnitudes(images.shape[2], images.shape[3], wide=wide)[operation, level]
    signed = (operation >= SIGNED.start) & (operation < SIGNED.stop)
    strength = torch.where(signed & negative, -strength, strength)
    return apply(images, operation, strength, list(OPERATIONS.values()))


def jitter_draws(
    index: Int[Tensor, " n"], strengths: tuple[float, ...], *, seed: int, epoch: int
) -> tuple[Int[Tensor, "n changes"], Float[Tensor, "n changes"]]:
    """Return the order of an image's changes, and the strength of each: brightness, contrast, saturation, hue."""
    count = len(strengths)
    counters = (index[:, None] * count + torch.arange(count)).flatten()
    order = uniform(seed, epoch, counters, Stream.JITTER_ORDER).view(-1, count).argsort(1)
    most = torch.tensor(strengths, dtype=torch.float64)
    least = -most.clamp(max=1.0)
    return order, least + uniform(seed, epoch, counters, Stream.JITTER).view(-1, count) * (most - least)


def _jitter(images: Tensor, index: Tensor, strengths: tuple[float, ...], *, seed: int, epoch: int) -> Tensor:
    """Change brightness, contrast, saturation and hue of each image in an order of its own."""
    order, change = jitter_draws(index, strengths, seed=seed, epoch=epoch)
    for operation in order.unbind(1):
        images = apply(images, operation, change.gather(1, operation[:, None])[:, 0], JITTER)
    return images


Operation = Callable[[Tensor, Tensor], Tensor]
"""A function of images [n, c, h, w] as bytes, and of the strength of each, float64 on the CPU."""


def apply(
    images: UInt8[Tensor, "n c h w"],
    operation: Int[Tensor, " n"],
    strength: Float[Tensor, " n"],
    operations: list[Operation],
) -> UInt8[Tensor, "n c h w"]:
    """Return each image after its operation, of this number in `operations`."""
    changed = images.clone()
    for number in sorted(set(operation.tolist())):
        rows = (operation == number).nonzero().flatten()
        there = rows.to(images.device)
        changed[there] = operations[number](images[there], strength[rows])
    return changed


@functools.cache
def magnitudes(height: int, width: int, *, wide: bool) -> Float[Tensor, "operations levels"]:
    """Return the strength of each operation at each level: RandAugment's, or TrivialAugment's wide ones.

    Shears are slopes, translations whole pixels, rotations degrees; colors, brightness and the like are changed by the
    factor 1 + strength; `Posterize` keeps this many bits, `Solarize` inverts from this fraction of 255 on.
    """
    shift = (32.0, 32.0) if wide else (150.0 / 331.0 * width, 150.0 / 331.0 * height)
    slope, angle, color, bits = (0.99, 135.0, 0.99, 6) if wide else (0.3, 30.0, 0.9, 4)
    table = torch.zeros(len(OPERATIONS), LEVELS, dtype=torch.float64)
    largest = (slope, slope, *shift, angle, color, color, color, color)
    for row, most in zip(SIGNED, largest, strict=True):
        table[row] = torch.linspace(0.0, most, LEVELS)  # in float32, as in torchvision
    names = list(OPERATIONS)
    for name in ("TranslateX", "TranslateY"):
        table[names.index(name)].trunc_()
    table[names.index("Posterize")] = (8 - torch.arange(LEVELS) / ((LEVELS - 1) / bits)).round()
    table[names.index("Solarize")] = torch.linspace(1.0, 0.0, LEVELS)
    return table


def _identity(images: Tensor, strength: Tensor) -> Tensor:
    return images


def _affine(images: Tensor, matrices: list[tuple[float, ...]]) -> Tensor:
    """Return images whose pixel (x, y) is the nearest to (a x + b y + c, d x + e y + f); black outside of the image.

    Coordinates are those of centers in 16.16 fixed point, as in Pillow.
    """
    a, b, c, d, e, f = torch.tensor(matrices, dtype=torch.float64).unbind(1)
    points = (a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5)
    fixed = [torch.floor(v * 65536 + 0.5).long().to(images.device)[:, None, None] for v in points]
    height, width = images.shape[2:]
    x, y = torch.arange(width, device=images.device), torch.arange(height, device=images.device)[:, None]
    column, row = ((fixed[k] * x + fixed[k + 1] * y + fixed[k + 2]) >> 16 for k in (0, 3))
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    place = torch.where(inside, row * width + column, 0).flatten(1)
    pixels = images.flatten(2).gather(2, place[:, None].expand(-1, images.shape[1], -1)).view_as(images)
    return pixels.masked_fill_(~inside[:, None], 0)


def _shear_x(images: Tensor, strength: Tensor) -> Tensor:
    return _affine(images, [(1.0, slope, 0.0, 0.0, 1.0, 0.0) for slope in strength.tolist()])


def _shear_y(images: Tensor, strength: Tensor) -> Tensor:
    return _affine(images, [(1.0, 0.0, 0.0, slope, 1.0, 0.0) for slope in strength.tolist()])


def _translate_x(images: Tensor, strength: Tensor) -> Tensor:
    return _affine(images, [(1.0, 0.0, -pixels, 0.0, 1.0, 0.0) for pixels in strength.tolist()])


def _translate_y(images: Tensor, strength: Tensor) -> Tensor:
    return _affine(images, [(1.0, 0.0, 0.0, 0.0, 1.0, -pixels) for pixels in strength.tolist()])


def _rotate(images: Tensor, strength: Tensor) -> Tensor:
    """Turn images counterclockwise around their center."""
    x, y = images.shape[3] / 2, images.shape[2] / 2

    def matrix(degrees: float) -> tuple[float, ...]:
        angle = -math.radians(degrees % 360.0)
        cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
        return cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y

    return _affine(images, [matrix(degrees) for degrees in strength.tolist()])


def _blend(images: Tensor, other: Tensor, strength: Tensor) -> Tensor:
    """Return `other + (1 + strength) (images - other)`, clipped and rounded down."""
    factor = (1.0 + strength).float().to(images.device)[:, None, None, None]
    base = other.float()
    return (base + factor * (images.float() - base)).clamp_(0, 255).to(torch.uint8)


def _gray(images: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images
    red, green, blue = images.int().unbind(1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16)[:, None]


def _brightness(images: Tensor, strength: Tensor) -> Tensor:
    return _blend(images, torch.zeros_like(images[:, :1, :1, :1]), strength)


def _color(images: Tensor, strength: Tensor) -> Tensor:
    return _blend(images, _gray(images), strength)


def _contrast(images: Tensor, strength: Tensor) -> Tensor:
    total = _gray(images).long().sum((1, 2, 3), keepdim=True)
    count = torch.tensor(images[0, 0].numel(), device=images.device)
    return _blend(images, torch.floor(total.double() / count + 0.5), strength)


def _sharpness(images: Tensor, strength: Tensor) -> Tensor:
    """Blend with a smoothed copy: a weighted mean of 3x3 pixels, the inner one counting 5 times; not at the border."""
    values, smooth = images.int(), images.clone()
    height, width = images.shape[2:]
    if min(height, width) > 2:
        around = [values[..., i : height - 2 + i, j : width - 2 + j] for i in range(3) for j in range(3)]
        total = torch.stack(around).sum(0) + 4 * values[..., 1:-1, 1:-1]
        smooth[..., 1:-1, 1:-1] = ((2 * total + 13) // 26).to(torch.uint8)
    return _blend(images, smooth, strength)


def _posterize(images: Tensor, strength: Tensor) -> Tensor:
    mask = (256 - 2 ** (8 - strength.long())).to(images.device, torch.uint8)
    return images & mask[:, None, None, None]


def _solarize(images: Tensor, strength: Tensor) -> Tensor:
    threshold = (255.0 * strength).to(images.device)[:, None, None, None]
    return torch.where(images < threshold, images, 255 - images)


def _auto_contrast(images: Tensor, strength: Tensor) -> Tensor:
    low, high = (function(images, (2, 3)).double()[:, :, None, None] for function in (torch.amin, torch.amax))
    scale = torch.tensor(255.0, device=images.device) / (high - low)  # a number would be multiplied by the reciprocal
    stretched = (images * scale - low * scale).clamp_(0, 255)
    return torch.where(high > low, stretched, images.double()).to(torch.uint8)


def _equalize(images: Tensor, strength: Tensor) -> Tensor:
    """Map the pixels of each channel so that all values are about equally frequent."""
    pixels = images.flatten(0, 1).flatten(1).long()
    counts = torch.zeros(len(pixels), 256, dtype=torch.long, device=images.device)
    counts.scatter_add_(1, pixels, torch.ones_like(pixels))
    last = counts.gather(1, pixels.amax(1, keepdim=True))
    step = (pixels.shape[1] - last) // 255
    table = (step // 2 + counts.cumsum(1) - counts) // step.clamp(min=1)
    table = torch.where(step > 0, table.clamp(max=255), torch.arange(256, device=images.device))
    return table.gather(1, pixels).to(torch.uint8).view_as(images)


def _hue(images: Tensor, strength: Tensor) -> Tensor:
    """Turn the hue by a fraction of the circle; brightness (the largest channel) and saturation stay."""
    if images.shape[1] == 1:
        return images
    values = images.double()
    high, spread = values.amax(1), values.amax(1) - values.amin(1)
    red, green, blue = values.unbind(1)
    unit = spread.clamp(min=1.0)
    hue = torch.where(
        high == red,
        (green - blue) / unit,
        torch.where(high == green, 2.0 + (blue - red) / unit, 4.0 + (red - green) / unit),
    )
    hue = hue + (strength * 6.0).to(images.device)[:, None, None]
    turned = []
    for start in (5.0, 3.0, 1.0):
        sector = torch.remainder(hue + start, 6.0)
        turned.append(high - spread * torch.minimum(sector, 4.0 - sector).clamp(0.0, 1.0))
    return torch.stack(turned, 1).round_().to(torch.uint8)


OPERATIONS: dict[str, Operation] = {
    "Identity": _identity,
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateX": _translate_x,
    "TranslateY": _translate_y,
    "Rotate": _rotate,
    "Brightness": _brightness,
    "Color": _color,
    "Contrast": _contrast,
    "Sharpness": _sharpness,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
}
"""The operations of RandAugment and TrivialAugment, each chosen with the same probability; named as in torchvision."""

SIGNED = range(1, 10)
"""Those from `ShearX` to `Sharpness`, whose strength is negative with probability 1/2."""

JITTER: list[Operation] = [_brightness, _contrast, _color, _hue]
