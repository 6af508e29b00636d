"""What the tests of the online methods share: an optimizer, a step as training takes it, random logits."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from kdschemes.core.distillation import Distillation
from kdschemes.core.types import Batch
from tests.schemes.cases import START

PEERS = ("peer0", "peer1", "peer2")


def sgd(parameters: Iterable[Tensor]) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1)


def step(
    scheme: Distillation, optimizer: torch.optim.Optimizer, micro_batches: Sequence[Batch], phase: int = 0
) -> None:
    """Take one turn's step as training does."""
    for batch in micro_batches:
        scheme(batch, START, phase).total.backward()
    groups = scheme.parameter_groups()
    for parameter in itertools.chain.from_iterable(groups.get(name, []) for name in scheme.skipped_nodes(phase)):
        parameter.grad = None
    optimizer.step()
    optimizer.zero_grad()


def logits_of(*shape: int, seed: int = 0, scale: float = 3.0, dtype: torch.dtype = torch.float64) -> Tensor:
    return (scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


LABELS = torch.tensor([3, 0, 9, 3, 5, 1, 7])
