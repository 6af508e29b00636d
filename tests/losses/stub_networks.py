"""Networks that only have a classifier: what losses may ask of a side besides its shapes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kdschemes.core.loss import Endpoint
from kdschemes.models import ModelSpec, StagedNetwork


class StubNetwork(StagedNetwork):
    """Nothing but the classifier of a last feature of that width (None: without one)."""

    def __init__(self, width: int | None, classes: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(width or 0)
            self.fc = None if width is None else nn.Linear(width, classes)
        self.spec = ModelSpec("stub", classes, 3, 8)
        self.stage_names = ()
        self.norms: dict[str, nn.BatchNorm2d] = {}

    @property
    def activated(self) -> Mapping[str, nn.BatchNorm2d]:  # type: ignore[override]
        return self.norms

    def linear_classifier(self) -> nn.Linear | None:
        return self.fc

    def forward(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def forward_stages(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        raise NotImplementedError

    def forward_until(self, images: Tensor, stage: str) -> Tensor:
        raise NotImplementedError


def side(
    shapes: Mapping[str, tuple[int, ...]], *, classes: int = 7, classified: bool = True, frozen: bool = False
) -> Endpoint:
    """Return a side with these features, whose network has a linear classifier of the last of them."""
    last = list(shapes.values())[-1] if shapes else (1,)
    width = last[0] if len(last) == 3 else last[-1]
    network = StubNetwork(width if classified else None, classes).requires_grad_(not frozen)
    network.norms = {stage: nn.BatchNorm2d(shape[0]) for stage, shape in shapes.items() if len(shape) == 3}
    return Endpoint(dict(shapes), network)
