"""What the images of a network must look like, and the step from images that look different."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class InputSpec:
    """The images that a network was trained on; None: unknown.

    `image_size` is their side in pixels. Pixels were scaled to 0..1, then normalized per channel by `mean` and `std`.
    """

    image_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def otherwise(self, other: InputSpec) -> InputSpec:
        """Return this specification, with the values of `other` where it has none."""
        return InputSpec(self.image_size or other.image_size, self.mean or other.mean, self.std or other.std)


def read_input(pretrained_cfg: Mapping[str, Any], channels: int) -> InputSpec:
    """Return what a `pretrained_cfg` of timm says about the input, for a network with this number of channels.

    As in timm, a mean and std for another number of channels are averaged.

    Raises:
        ValueError: a value has the wrong type or is out of range.
    """
    found: dict[str, Any] = {}
    for key in ("mean", "std"):
        values = pretrained_cfg.get(key)
        if values is None:
            continue
        numbers = [float(value) for value in values]
        if not numbers or not all(map(math.isfinite, numbers)) or (key == "std" and min(numbers) <= 0):
            raise ValueError(f"{key} is {values}")
        found[key] = tuple(numbers if len(numbers) == channels else [sum(numbers) / len(numbers)] * channels)
    size = pretrained_cfg.get("input_size")
    if size is not None:
        _, height, width = (int(side) for side in size)
        if min(height, width) < 1:
            raise ValueError(f"input_size is {size}")
        if height == width:
            found["image_size"] = height
    return InputSpec(**found)


def crop_fraction(kept: float, image_size: int) -> float:
    """Return timm's `crop_pct` for images resized to `round(image_size / kept)`, then cropped to `image_size`.

    timm rounds down where it divides by the fraction.
    """
    resized = round(image_size / kept)
    exact = image_size / resized
    return exact if math.floor(image_size / exact) == resized else math.nextafter(exact, 0.0)


class AdaptInput(nn.Module):
    """Turns images that look like `given` into such as a network needs: resized, then re-normalized.

    `(x * given.std + given.mean - own.mean) / own.std` per channel, with bilinear interpolation and antialiasing. What
    is equal or unknown is left out. It has no parameters and passes gradients on.
    """

    def __init__(self, given: InputSpec, own: InputSpec) -> None:
        super().__init__()
        self.given, self.own = given, own
        self.resizes = given.image_size not in (None, own.image_size)
        self.affine: tuple[Sequence[float], Sequence[float]] | None = None
        if given.mean and given.std and own.mean and own.std and (given.mean, given.std) != (own.mean, own.std):
            channels = list(zip(given.mean, given.std, own.mean, own.std, strict=True))
            self.affine = [s / t for _, s, _, t in channels], [(m - n) / t for m, _, n, t in channels]

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h2 w2"]:
        """Return the images as the network needs them."""
        size = self.own.image_size
        if size is not None and images.shape[-2:] != (size, size):
            images = functional.interpolate(images, (size, size), mode="bilinear", antialias=True)
        if self.affine is None:
            return images
        scale, shift = (images.new_tensor(values)[:, None, None] for values in self.affine)
        return images * scale + shift

    def extra_repr(self) -> str:
        return f"{self.given}, {self.own}"
