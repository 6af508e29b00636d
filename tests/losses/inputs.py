"""Seeded inputs, gradients, and the names of cases that a test goes through."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor


@contextlib.contextmanager
def case(*values: object) -> Iterator[None]:
    """Name the case in which a check fails: thousands of cases cost less in a loop than as tests of their own."""
    try:
        yield
    except Exception as error:
        error.add_note(f"case: {', '.join(map(str, values))}")
        raise


def normal(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def logits(seed: int, n: int = 6, c: int = 10, scale: float = 1.0) -> Tensor:
    return normal(seed, n, c, scale=scale)


def logits_and_labels(seed: int, n: int = 6, c: int = 10, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """The student's logits, the teacher's, and the labels."""
    generator = torch.Generator().manual_seed(seed)
    z, v = (scale * torch.randn(n, c, generator=generator, dtype=torch.float64) for _ in range(2))
    return z, v, torch.randint(c, (n,), generator=generator)


def gradient(value: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(value, x)[0]


def gradients(value: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, inputs)


def gradients_at(loss: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    return torch.autograd.grad(loss(*leaves), leaves)
