"""Normalization of rows: to unit length, or without a large common offset."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from kdschemes.core.precision import full_precision


@full_precision
def unit_rows(rows: Float[Tensor, "n d"], *, order: int = 2) -> Float[Tensor, "n d"]:
    r"""Return each row divided by its norm $\|x\|_p$, p = `order`; a zero row stays 0, with zero gradient.

    The result is scale-invariant, so rows are first divided by their largest magnitude: no scale overflows or
    underflows.
    """
    assert order in (1, 2), order
    largest = rows.detach().abs().amax(dim=1, keepdim=True)
    nonzero = largest != 0
    scaled = rows / torch.where(nonzero, largest, 1.0)
    length = torch.linalg.vector_norm(scaled, ord=order, dim=1, keepdim=True)
    return torch.where(nonzero, scaled / torch.where(nonzero, length, 1.0), 0.0)


@full_precision
def unit(x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
    """Return L2-normalized rows, at any scale; a zero row stays 0, with zero gradient."""
    largest = x.detach().abs().amax(dim=-1, keepdim=True)
    present = ~(largest <= torch.finfo(x.dtype).tiny)
    scaled = torch.where(present, x, 1.0) / torch.where(present, largest, 1.0)
    return torch.where(present, scaled / scaled.norm(dim=-1, keepdim=True), 0.0)


def without_offset(logits: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    """Return the logits, minus each row's largest where the row's offset exceeds its spread: softmax is the same.

    An offset that all logits of a sample have in common takes up digits, which are lost when the logits are divided by
    a temperature or compared with others. The condition means that all are within a factor of 2 of each other, where
    the subtraction is exact (Sterbenz); other rows are unchanged. The gradient is the identity.
    """
    low, high = logits.detach().aminmax(dim=1, keepdim=True)
    return logits - torch.where(high - low <= torch.minimum(low.abs(), high.abs()), high, 0.0)
