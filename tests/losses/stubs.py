"""Sides without real networks: shapes of stages, a classifier, random outputs; and losses built for two of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdschemes.core.loss import Endpoint, Gather, Loss
from kdschemes.core.types import Batch, DataSpec, Output
from kdschemes.losses.build import build_loss
from kdschemes.models import ModelSpec, StagedNetwork

Shapes = Mapping[str, tuple[int, ...]]
SMALL = {"block1": (4, 8, 8), "block2": (6, 4, 4), "block3": (8, 4, 3)}
BIG = {"stem": (4, 16, 16), "layer1": (8, 8, 8), "layer2": (6, 4, 4), "layer3": (12, 2, 4)}
PAIRS = [("block1", "layer1"), ("block2", "layer2"), ("block3", "layer3")]
TOKENS = {"one": (16, 6), "two": (16, 6), "three": (16, 9)}
N, CLASSES = 5, 7


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


def side(shapes: Shapes, *, classes: int = CLASSES, classified: bool = True, frozen: bool = False) -> Endpoint:
    """Return a side with these features, whose network has a linear classifier of the last of them."""
    last = list(shapes.values())[-1] if shapes else (1,)
    width = last[0] if len(last) == 3 else last[-1]
    network = StubNetwork(width if classified else None, classes).requires_grad_(not frozen)
    network.norms = {stage: nn.BatchNorm2d(shape[0]) for stage, shape in shapes.items() if len(shape) == 3}
    return Endpoint(dict(shapes), network)


def data_spec(classes: int = CLASSES) -> DataSpec:
    return DataSpec(classes, 3, 8, torch.arange(20) % 3)


def build(options: Any, student: Shapes = SMALL, teacher: Shapes = BIG, classes: int = CLASSES) -> Loss[Any]:
    """Build a loss for two sides, the teacher frozen."""
    torch.manual_seed(0)
    sides = side(student, classes=classes), side(teacher, classes=classes, frozen=True)
    return build_loss(options, student=sides[0], teacher=sides[1], data_spec=data_spec(classes))


def output(shapes: Shapes, seed: int, n: int = N, classes: int = CLASSES) -> Output:
    """Features after a ReLU, and what was before it."""
    generator = torch.Generator().manual_seed(seed)
    before = {name: torch.randn(n, *shape, generator=generator).requires_grad_() for name, shape in shapes.items()}
    features = {name: x.detach().relu().requires_grad_() for name, x in before.items()}
    return Output((2.0 * torch.randn(n, classes, generator=generator)).requires_grad_(), features, before)


def batch(n: int = N) -> Batch:
    return Batch(torch.zeros(n, 3, 8, 8), torch.arange(n) % 3, torch.arange(n))


def part(whole: Output, rows: slice) -> Output:
    """Some samples of an output."""
    maps = ({name: f[rows] for name, f in x.items()} for x in (whole.features, whole.preactivations))
    return Output(whole.logits[rows], *maps)


def part_of_batch(rows: slice, n: int = N) -> Batch:
    whole = batch(n)
    return Batch(whole.images[rows], whole.labels[rows], whole.index[rows])


def same(x: Tensor) -> Tensor:
    return x


def value_of(loss: Loss[Any], student: Output, teacher: Output, gather: Gather = same) -> Tensor:
    value = loss(student, teacher, batch(len(student.logits)), gather)
    assert value.shape == ()
    return value


def gathered(loss: Loss[Any], student: Output, teacher: Output, mine: slice, others: slice) -> Tensor:
    """The value that one of two processes gets, which has the samples `mine`; the other's come after them."""
    n, sent = len(student.logits), list[Tensor]()

    def keep(x: Tensor) -> Tensor:
        sent.append(x.detach())
        return x

    with torch.no_grad():
        copy.deepcopy(loss)(part(student, others), part(teacher, others), part_of_batch(others, n), keep)
    rest = iter(sent)
    local = part(student, mine), part(teacher, mine), part_of_batch(mine, n)
    value = copy.deepcopy(loss)(*local, lambda x: torch.cat([x, next(rest)]))
    assert not list(rest)
    return value
