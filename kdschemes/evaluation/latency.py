"""Inference latency for one image."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from kdschemes.data import DataModule

LATENCY_IMAGES, WARM_UP = 50, 5


@torch.no_grad()
def latencies(
    predictors: Mapping[str, Callable[[Tensor], object]],
    images: Iterable[Float[Tensor, "1 c h w"]],
    check: Callable[[], None],
) -> dict[str, list[float]]:
    """Return each predictor's latency in milliseconds per image, measured in turns, without the warmup images.

    `check` is called before each image.
    """
    measured: dict[str, list[float]] = {name: [] for name in predictors}
    for number, image in enumerate(images):
        check()
        for name, predictor in predictors.items():
            _wait(image.device)
            started = time.perf_counter()
            predictor(image)
            _wait(image.device)
            if number >= WARM_UP:
                measured[name].append(1000 * (time.perf_counter() - started))
    return measured


def single_images(data: DataModule) -> Iterator[Float[Tensor, "1 c h w"]]:
    """Yield single test images for latency measurements, starting with the warmup images."""
    chosen = torch.linspace(0, data.sizes["test"] - 1, LATENCY_IMAGES).long()
    positions = data.positions["test"][torch.cat([chosen[:1].repeat(WARM_UP), chosen])]
    for image in data.source.plain("test", [positions[i : i + 1] for i in range(len(positions))]):
        yield image.contiguous(memory_format=data.memory_format)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
