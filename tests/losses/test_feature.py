"""Losses between features: against the loop oracle, for every size and layout, and at the edges of precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdschemes.losses.feature.at import attention_map, attention_transfer
from kdschemes.losses.feature.hint import hint
from kdschemes.losses.stages import match_size
from tests.losses import oracles


def maps(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_hint_equals_the_oracle() -> None:
    s, t = maps(0, 3, 4, 5, 2), maps(1, 3, 4, 5, 2)
    assert hint(s, t).item() == pytest.approx(oracles.hint(s.numpy(), t.numpy()), rel=1e-13)
    assert hint(s.flatten(1), t.flatten(1)) == hint(s, t)
    assert hint(s, s) == 0


def test_hint_refuses_to_broadcast() -> None:
    with pytest.raises((AssertionError, TypeError), match=r"against|teacher"):
        hint(maps(0, 3, 4), maps(1, 3, 1))


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ((6, 8, 8), (3, 8, 8)),
        ((4, 4, 6), (5, 8, 6)),
        ((4, 9, 3), (2, 4, 7)),
        ((4, 8, 5), (4, 8, 2)),
        ((2, 7, 7), (2, 3, 3)),
    ],
)
def test_attention_transfer_equals_the_oracle(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    s, t = maps(2, 3, *student), maps(3, 3, *teacher)
    assert attention_transfer(s, t).item() == pytest.approx(oracles.attention_transfer(s.numpy(), t.numpy()), rel=1e-12)
    pooled = match_size(s, t)
    for ours, truth in zip(pooled, oracles.to_smaller(s.numpy(), t.numpy()), strict=True):
        torch.testing.assert_close(ours, torch.from_numpy(truth))


def test_attention_maps_have_unit_length_and_no_scale() -> None:
    f = maps(4, 3, 5, 4, 6)
    a = attention_map(f)
    torch.testing.assert_close(a, torch.from_numpy(oracles.attention_map(f.numpy())))
    torch.testing.assert_close(a.norm(dim=1), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(attention_map(-3.0 * f), a)
    torch.testing.assert_close(attention_map(f[:, torch.randperm(5)]), a)


@pytest.mark.parametrize("scale", [1e10, 1e18, 1.0, 1e-10, 1e-20])
def test_no_scale_of_the_features_overflows_or_vanishes(scale: float) -> None:
    s, t = maps(5, 4, 8, 6, 6), maps(6, 4, 8, 6, 6)
    ours = (s.float() * scale).requires_grad_()
    value = attention_transfer(ours, t.float() * scale)
    assert value.item() == pytest.approx(oracles.attention_transfer(s.numpy(), t.numpy()), rel=1e-5)
    reference = s.requires_grad_()
    (truth,) = torch.autograd.grad(attention_transfer(reference, t), reference)
    (gradient,) = torch.autograd.grad(value, ours)
    torch.testing.assert_close(gradient.double() * scale, truth, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    s, t = maps(7, 4, 64, 8, 8, scale=3.0).relu(), maps(8, 4, 32, 4, 4, scale=3.0).relu()
    truth = attention_transfer(s, t).item(), hint(s, s.flip(0)).item()
    half = attention_transfer(s.to(dtype), t.to(dtype)), hint(s.to(dtype), s.flip(0).to(dtype))
    with torch.autocast("cpu", dtype=dtype):
        auto = attention_transfer(s.float(), t.float()), hint(s.float(), s.flip(0).float())
    assert [v.dtype for v in half + auto] == [torch.float32] * 4
    assert [v.item() for v in half] == pytest.approx(truth, rel=1e-2)
    assert [v.item() for v in auto] == pytest.approx(truth, rel=1e-5)


def test_gradients_of_both_sides() -> None:
    s, t = maps(9, 2, 3, 4, 2).requires_grad_(), maps(10, 2, 2, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(attention_transfer, (s, t))
    assert torch.autograd.gradcheck(hint, (s, maps(11, 2, 3, 4, 2).requires_grad_()))


def test_zero_features_give_a_zero_map_and_a_finite_gradient() -> None:
    s, t = torch.zeros(2, 3, 4, 4, requires_grad=True), maps(12, 2, 3, 4, 4).float()
    value = attention_transfer(s, t)
    (gradient,) = torch.autograd.grad(value, s)
    assert value.item() == pytest.approx(1 / 16)
    assert gradient.abs().max() == 0


def test_batch_layout_and_equality() -> None:
    s, t = maps(13, 5, 4, 6, 6), maps(14, 5, 8, 3, 3)
    value = attention_transfer(s, t)
    last = torch.channels_last
    torch.testing.assert_close(attention_transfer(s.to(memory_format=last), t.to(memory_format=last)), value)
    torch.testing.assert_close(attention_transfer(s.transpose(2, 3).contiguous().transpose(2, 3), t), value)
    rows = [attention_transfer(s[i : i + 1], t[i : i + 1]) for i in range(5)]
    torch.testing.assert_close(torch.stack(rows).mean(), value)
    assert attention_transfer(s, s) == 0
