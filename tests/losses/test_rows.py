"""Rows of length 1."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from kdschemes.losses.rows import unit_rows
from tests.losses.inputs import normal


@pytest.mark.parametrize("order", [1, 2])
def test_unit_rows(order: int) -> None:
    x = normal(35, 5, 4)
    torch.testing.assert_close(unit_rows(x, order=order), functional.normalize(x, p=order, dim=1))
    x[1] = 0.0
    assert (unit_rows(x)[1] == 0).all()
    assert torch.autograd.gradcheck(lambda y: unit_rows(y, order=order), normal(36, 3, 4).requires_grad_())
    for scale in (1e-40, 1e-30, 1e30, 1e37):
        torch.testing.assert_close(unit_rows(scale * x.float()), unit_rows(x).float(), rtol=1e-3, atol=1e-3)
