"""Image files as a run's evaluation sees them."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from kdschemes.data.image_folder import read_image
from kdschemes.data.views import normalize
from kdschemes.deployment.opened import Trained
from kdschemes.models import InputSpec


class Preparation:
    """Turns an image file into what a trained network's evaluation would see.

    The image is turned upright, resized and cropped to its center at the size of the run's images, and normalized; the
    network then resizes it as in the run, if it has a size of its own.
    """

    def __init__(self, trained: Trained) -> None:
        from torchvision.transforms import v2  # a slow import that other commands do not need

        spec, size = trained.network.spec, trained.image_size
        enlarged = math.floor(size / spec.crop_pct) if size == spec.image_size else round(size / spec.crop_pct)
        self.gray = spec.channels == 1
        self.mean, self.std = spec.mean or (0.0,) * spec.channels, spec.std or (1.0,) * spec.channels
        self.resize = v2.Compose([v2.Resize(enlarged, antialias=True), v2.CenterCrop(size), v2.PILToTensor()])
        trained.network.accept(InputSpec(size, spec.mean, spec.std))

    def __call__(self, path: Path) -> Float[Tensor, "1 c h w"]:
        """Return one image as a batch.

        Raises:
            UserError: the file is missing, damaged, not an image, or has more than 8 bits per channel.
        """
        image = read_image(str(path))
        pixels: Tensor = self.resize(image.convert("L") if self.gray else image)
        return normalize(pixels[None].to(torch.uint8), self.mean, self.std)
