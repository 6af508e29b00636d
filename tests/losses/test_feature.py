"""Checks of every loss between maps: the formula, sizes and layouts, precision, gradients, zeros, equality."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from kdschemes.errors import UserError
from tests.losses.cases import MapCase
from tests.losses.inputs import case as told
from tests.losses.inputs import gradients, normal
from tests.losses.stubs import build
from tests.losses.table import DEFAULTS, cases, flags

CASES: dict[str, MapCase] = cases(MapCase)
every = pytest.mark.parametrize("name", CASES)


def pair(case: MapCase, n: int = 3, size: tuple[int, int] = (5, 4), seed: int = 0) -> tuple[Tensor, Tensor]:
    return normal(seed, n, 6, *size), normal(seed + 1, n, case.teacher, *size)


def gradients_of(case: MapCase, s: Tensor, t: Tensor) -> list[Tensor]:
    inputs = [x.detach().requires_grad_() for x in (s, t)]
    return list(gradients(case.loss(*inputs), *inputs[: 1 + case.teacher_differentiable]))


SIZES = {
    (1, 2): (1, 2),
    (4, 4): (4, 4),
    (8, 3): (8, 3),
    (3, 9): (3, 9),
    (7, 7): (3, 3),
    (4, 8): (4, 5),
    (9, 3): (4, 7),
    (2, 6): (5, 6),
}
"""Of the student's maps, and the teacher's."""


@every
def test_values_equal_the_formula(name: str) -> None:
    case = CASES[name]
    for (student, teacher), n in product(SIZES.items(), (1, 3)):
        with told(student, teacher, n):
            s, t = normal(1, n, 6, *student), normal(2, n, case.teacher, *(teacher if case.resizes else student))
            expected = case.formula(s.numpy(), t.numpy())
            assert case.loss(s, t).item() == pytest.approx(expected, rel=1e-10, abs=1e-15)
            one = case.loss(s.float(), t.float())
            assert one.dtype == torch.float32
            assert one.item() == pytest.approx(expected, rel=1e-5, abs=1e-7)


@every
def test_gradients_of_both_sides(name: str) -> None:
    case = CASES[name]
    for size in case.sizes_of_gradcheck:
        s, t = pair(case, n=2, size=size)
        leaves = s.requires_grad_(), t.requires_grad_(case.teacher_differentiable)
        assert torch.autograd.gradcheck(case.loss, leaves)
    if case.resizes:
        s, t = normal(9, 2, 6, 2, 3).requires_grad_(), normal(10, 2, case.teacher, 3, 2)
        assert torch.autograd.gradcheck(case.loss, (s, t.requires_grad_(case.teacher_differentiable)))


@every
def test_layout_and_order(name: str) -> None:
    case = CASES[name]
    for size in ((6, 6), (6, 4)):
        s, t = pair(case, n=5, size=size)
        value = case.loss(s, t)
        assert value > 0
        last = torch.channels_last
        torch.testing.assert_close(case.loss(s.to(memory_format=last), t.to(memory_format=last)), value)
        strided = (x.transpose(2, 3).contiguous().transpose(2, 3) for x in (s, t))
        torch.testing.assert_close(case.loss(*strided), value)
        order = torch.randperm(5, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(case.loss(s[order], t[order]), value)
        torch.testing.assert_close(case.loss(s.mT, t.mT), value)
        torch.testing.assert_close(case.loss(s.flip(2, 3), t.flip(2, 3)), value)
        if case.channel_order_free:
            ours, theirs = torch.tensor([4, 2, 5, 0, 1, 3]), torch.tensor([4, 2, 5, 0, 1, 3])
            theirs = theirs[theirs < case.teacher]
            torch.testing.assert_close(case.loss(s[:, ours], t[:, theirs]), value)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.by_sample])
def test_a_batch_is_the_mean_of_its_samples(name: str) -> None:
    case = CASES[name]
    s, t = normal(17, 5, 6, 6, 6), normal(18, 5, case.teacher, *((3, 3) if case.resizes else (6, 6)))
    rows = [case.loss(s[i : i + 1], t[i : i + 1]) for i in range(5)]
    torch.testing.assert_close(torch.stack(rows).mean(), case.loss(s, t))


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    for relu, size in ((False, (8, 8)), (True, (8, 8)), (True, (4, 4))):
        s, t = pair(case, n=4, size=(8, 8), seed=19)
        if case.resizes:
            t = normal(20, 4, case.teacher, *size)
        s, t = ((3.0 * x).relu().to(dtype) if relu else x.to(dtype) for x in (s, t))
        truth, exact = case.loss(s.double(), t.double()), gradients_of(case, s.double(), t.double())
        plain = case.loss(s, t), gradients_of(case, s, t)
        with torch.autocast("cpu", dtype=torch.bfloat16 if dtype == torch.float32 else dtype):
            inside = case.loss(s, t), gradients_of(case, s, t)
            single = case.loss(s.float(), t.float()), gradients_of(case, s.float(), t.float())
        for value, found in (plain, inside, single):
            assert value.dtype == torch.float32
            assert value.item() == pytest.approx(truth.item(), rel=1e-5)
            for g, expected in zip(found, exact, strict=True):
                assert g.double().norm().item() == pytest.approx(expected.norm().item(), rel=1e-2)
        assert {g.dtype for g in plain[1]} == {dtype}


@every
@pytest.mark.parametrize("who", ["student", "teacher", "both"])
def test_zeros_give_a_finite_value_and_gradient(name: str, who: str) -> None:
    case = CASES[name]
    for n in (1, 3):
        s, t = (x.float() for x in pair(case, n=n, size=(6, 6)))
        s, t = (s if who == "teacher" else 0 * s), (t if who == "student" else 0 * t)
        assert case.loss(s, t).isfinite()
        assert all(g.isfinite().all() for g in gradients_of(case, s, t))
        one = s.clone()
        one[0, :3] = 0.0
        assert all(g.isfinite().all() for g in gradients_of(case, one, t))


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_hard_inputs_give_finite_values_and_gradients(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    zeros, some = torch.zeros(3, 6, 4, 4, dtype=dtype), normal(21, 3, 6, 4, 4).to(dtype)
    dead = torch.cat([zeros[:, :2], some[:, 2:]], dim=1)
    constant = torch.cat([some[:, :2], torch.full_like(some[:, 2:], 0.1)], dim=1)
    one_off = zeros.clone()
    one_off[0, 0, 0, 0] = 1000.0
    for s in (zeros, dead, constant, one_off, some * 1000, some * 1e-30, some + 104.0):
        for t in (zeros, some, dead):
            t = t[:, : case.teacher]
            assert case.loss(s, t).isfinite()
            assert all(g.isfinite().all() for g in gradients_of(case, s, t))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.zero])
def test_zero_where_maps_are_equal(name: str) -> None:
    case = CASES[name]
    for x in (normal(3, 3, 6, 5, 4).abs().float(), normal(8, 4, 6, 6, 4)):
        assert case.loss(x, x.clone()) == 0
        found, *_ = gradients_of(case, x, x.clone())
        assert found.isfinite().all()
        if case.flat_at_zero:
            assert found.abs().max() == 0


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.scale_free])
@pytest.mark.parametrize("scale", [1e18, 1e10, 1e-10, 1e-18])
def test_no_scale_overflows_or_vanishes(name: str, scale: float) -> None:
    case = CASES[name]
    s, t = (x.float() for x in pair(case, size=(6, 6)))
    value, (exact, *_) = case.loss(s, t), gradients_of(case, s, t)
    assert case.loss(scale * s, scale * t).item() == pytest.approx(value.item(), rel=1e-5)
    found, *_ = gradients_of(case, scale * s, scale * t)
    torch.testing.assert_close(found.double() * scale, exact.double(), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("name", [name for name, (_, o) in DEFAULTS.items() if flags(o()).needs_positions])
def test_one_position_is_left_out_or_refused(name: str) -> None:
    options: Any = DEFAULTS[name][1]
    shapes = {"deep": (8, 2, 2), "deepest": (8, 1, 1)}
    assert build(options(), shapes, shapes).pairs == [("deep", "deep")]
    with pytest.raises(UserError, match=rf"^{name} .*'deepest:deep'"):
        build(options(stages=["deepest:deep"]), shapes, shapes)
    with pytest.raises(UserError, match=rf"^{name} .*'v' is a vector"):
        build(options(), {"v": (8,)}, {"v": (8,)})
