"""Attention transfer."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdschemes.config.losses import feature as config
from kdschemes.errors import UserError
from kdschemes.losses.feature.at import AT, attention_map, attention_transfer
from kdschemes.losses.stages import match_size
from tests.losses.cases import Flags, Inputs, MapCase, Parameters, Reference
from tests.losses.formulas import Array, to_smaller
from tests.losses.inputs import gradients_at, normal
from tests.losses.stubs import (
    BIG,
    PAIRS,
    SMALL,
    build,
    output,
    value_of,
)


def formula_of_map(sample: Array, *, power: float = 2.0, eps: float = 0.0) -> Array:
    """One map of a sample, summed over channels, flattened, over its length."""
    energy = np.array([math.fsum(abs(sample[:, i, j]) ** power) for i, j in np.ndindex(*sample.shape[1:])])
    length = math.sqrt(math.fsum(energy**2))
    return energy / (length + eps) if length else energy


def formula(student: Array, teacher: Array, *, variant: str = "code", power: float = 2.0, eps: float = 0.0) -> float:
    total = 0.0
    for s, t in zip(*to_smaller(student, teacher), strict=True):
        gap = formula_of_map(s, power=power, eps=eps) - formula_of_map(t, power=power, eps=eps)
        squared = math.fsum(gap**2)
        total += math.sqrt(squared) if variant == "paper" else squared / gap.size
    return total / len(student)


CASES = {
    "at": MapCase(attention_transfer, formula, teacher=4, scale_free=True),
    "at, paper": MapCase(
        partial(attention_transfer, variant="paper"), partial(formula, variant="paper"), teacher=4, scale_free=True
    ),
    "at, power 3, eps": MapCase(
        partial(attention_transfer, power=3.0, eps=0.1), partial(formula, power=3.0, eps=0.1), teacher=4
    ),
}
OPTIONS = [config.AT(variant="paper"), config.AT(power=3.0, eps=0.1)]
FLAGS = Flags(needs_positions=True)


def attention(x: Inputs, p: Parameters) -> Tensor:
    return attention_transfer(x["s"], x["t"])


REFERENCES: dict[str, Reference] = {
    "AT.RepDistiller": attention,
    "AT.mdistiller": attention,
    "AT.attention-transfer": attention,
    "AT.torchdistill_code": attention,
    "AT.torchdistill_paper": lambda x, p: attention_transfer(x["s"], x["t"], variant="paper"),
    "AT.KDZoo": lambda x, p: attention_transfer(x["s"], x["t"], eps=1e-6),
}


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
def test_value_equals_the_formula(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    s, t = normal(2, 3, *student), normal(3, 3, *teacher)
    assert attention_transfer(s, t).item() == pytest.approx(formula(s.numpy(), t.numpy()), rel=1e-12)
    pooled = match_size(s, t)
    for ours, truth in zip(pooled, to_smaller(s.numpy(), t.numpy()), strict=True):
        torch.testing.assert_close(ours, torch.from_numpy(truth))


def test_attention_maps_have_unit_length_and_no_scale() -> None:
    f = normal(4, 3, 5, 4, 6)
    a = attention_map(f)
    torch.testing.assert_close(a, torch.from_numpy(np.stack([formula_of_map(x) for x in f.numpy()])))
    torch.testing.assert_close(a.norm(dim=1), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(attention_map(-3.0 * f), a)
    torch.testing.assert_close(attention_map(f[:, torch.randperm(5)]), a)


@pytest.mark.parametrize("scale", [1e10, 1e18, 1.0, 1e-10, 1e-20])
def test_no_scale_of_the_features_overflows_or_vanishes(scale: float) -> None:
    s, t = normal(5, 4, 8, 6, 6), normal(6, 4, 8, 6, 6)
    ours = (s.float() * scale).requires_grad_()
    value = attention_transfer(ours, t.float() * scale)
    assert value.item() == pytest.approx(formula(s.numpy(), t.numpy()), rel=1e-5)
    reference = s.requires_grad_()
    (truth,) = torch.autograd.grad(attention_transfer(reference, t), reference)
    (gradient,) = torch.autograd.grad(value, ours)
    torch.testing.assert_close(gradient.double() * scale, truth, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision(dtype: torch.dtype) -> None:
    s, t = normal(7, 4, 64, 8, 8, scale=3.0).relu(), normal(8, 4, 32, 4, 4, scale=3.0).relu()
    truth = attention_transfer(s, t).item()
    half = attention_transfer(s.to(dtype), t.to(dtype))
    with torch.autocast("cpu", dtype=dtype):
        auto = attention_transfer(s.float(), t.float())
    assert half.dtype == auto.dtype == torch.float32
    assert half.item() == pytest.approx(truth, rel=1e-2)
    assert auto.item() == pytest.approx(truth, rel=1e-5)


def test_gradients_of_both_sides() -> None:
    s, t = normal(9, 2, 3, 4, 2).requires_grad_(), normal(10, 2, 2, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(attention_transfer, (s, t))


def test_zero_features_give_a_zero_map_and_a_finite_gradient() -> None:
    s, t = torch.zeros(2, 3, 4, 4, requires_grad=True), normal(12, 2, 3, 4, 4).float()
    value = attention_transfer(s, t)
    (gradient,) = torch.autograd.grad(value, s)
    assert value.item() == pytest.approx(1 / 16)
    assert gradient.abs().max() == 0


def test_batch_layout_and_equality() -> None:
    s, t = normal(13, 5, 4, 6, 6), normal(14, 5, 8, 3, 3)
    value = attention_transfer(s, t)
    last = torch.channels_last
    torch.testing.assert_close(attention_transfer(s.to(memory_format=last), t.to(memory_format=last)), value)
    torch.testing.assert_close(attention_transfer(s.transpose(2, 3).contiguous().transpose(2, 3), t), value)
    rows = [attention_transfer(s[i : i + 1], t[i : i + 1]) for i in range(5)]
    torch.testing.assert_close(torch.stack(rows).mean(), value)
    assert attention_transfer(s, s) == 0


def test_equal_attention_maps_give_the_norm_that_is_not_squared_a_zero_gradient() -> None:
    s = normal(4, 2, 3, 4, 4)
    t = s.clone()
    t[1] *= -2.0
    found, theirs = gradients_at(partial(attention_transfer, variant="paper"), s, t)
    assert found.abs().max() < 1e-7
    assert theirs.abs().max() < 1e-7
    assert attention_transfer(s, t, variant="paper") < 1e-7


def test_eps_is_relative_to_the_scale_of_the_features() -> None:
    s, t = normal(5, 2, 3, 4, 4).float(), normal(6, 2, 3, 4, 4).float()
    for scale in (1e-30, 1e-3, 1e30):
        ours = (scale * s).requires_grad_()
        value = attention_transfer(ours, scale * t, eps=1e-6)
        (gradient,) = torch.autograd.grad(value, ours)
        expected = formula(scale * s.double().numpy(), scale * t.double().numpy(), eps=1e-6)
        assert value.item() == pytest.approx(expected, rel=1e-4, abs=1e-12)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("choice", [{}, {"variant": "paper", "power": 3.0, "eps": 0.1}])
def test_the_module_sums_over_the_pairs(choice: dict[str, Any]) -> None:
    s, t = output(SMALL, 2), output(BIG, 3)
    value = value_of(build(config.AT(**choice)), s, t)
    expected = sum(attention_transfer(s.features[a], t.features[b], **choice) for a, b in PAIRS)
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize(
    ("options", "student", "teacher", "message"),
    [
        (config.AT(), {}, BIG, r"student has no features"),
        (config.AT(), {"v": (8,)}, BIG, r"at .*'v' is a vector of 8"),
        (config.AT(), {"v": (10, 8)}, BIG, r"'v' is 10 tokens"),
        (config.AT(stages="last"), {"v": (8, 1, 1)}, BIG, r"'v:layer3'.*1x1"),
        (config.AT(), {"v": (8, 1, 1)}, BIG, r"'v:layer3'.*1x1"),
        (config.AT(), {"u": (8, 1, 1), "v": (8, 1, 1)}, BIG, r"every .*1x1"),
    ],
)
def test_undefined_losses_are_refused_when_built(options: Any, student: Any, teacher: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build(options, student, teacher)
    assert "\n" not in str(error.value)


def test_all_pairs_leave_out_maps_of_one_position() -> None:
    shapes = {"deep": (8, 2, 2), "deepest": (8, 1, 1)}
    loss = build(config.AT(), shapes, shapes)
    assert isinstance(loss, AT)
    assert loss.pairs == [("deep", "deep")]
