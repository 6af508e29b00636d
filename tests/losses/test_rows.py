"""Rows of length 1, and rows without a common offset."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from kdschemes.losses.rows import unit_rows, without_offset
from tests.losses.inputs import gradient, normal


@pytest.mark.parametrize("order", [1, 2])
def test_unit_rows(order: int) -> None:
    x = normal(35, 5, 4)
    torch.testing.assert_close(unit_rows(x, order=order), functional.normalize(x, p=order, dim=1))
    x[1] = 0.0
    assert (unit_rows(x)[1] == 0).all()
    assert torch.autograd.gradcheck(lambda y: unit_rows(y, order=order), normal(36, 3, 4).requires_grad_())
    for scale in (1e-40, 1e-30, 1e30, 1e37):
        torch.testing.assert_close(unit_rows(scale * x.float()), unit_rows(x).float(), rtol=1e-3, atol=1e-3)


def test_without_offset() -> None:
    x = normal(37, 6, 4).float()
    x[2], x[3], x[4, 1] = 0.0, torch.inf, -torch.inf
    assert torch.equal(without_offset(x[:5]), x[:5]), "rows without an offset keep their bits"
    for offset in (1e4, -1e4, 50.0):
        shifted = x[:3] + offset
        found = without_offset(shifted)
        assert torch.equal(found.double(), shifted.double() - shifted.double().amax(dim=1, keepdim=True)), "exact"
    x[5, 0] = torch.nan
    assert without_offset(x)[5, 0].isnan()
    y = (normal(38, 3, 4) + 100.0).requires_grad_()
    assert torch.equal(gradient(without_offset(y).square().sum(), y), 2.0 * without_offset(y))
