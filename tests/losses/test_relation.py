"""Checks of every loss between embeddings: formula, order, rotation, scale, zeros, precision; and of the modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kdschemes.core.types import Output
from tests.losses.cases import RowCase
from tests.losses.inputs import gradients_at, normal
from tests.losses.stubs import BIG, SMALL, build, output, value_of
from tests.losses.table import OPTIONS, cases, flags, kind_of

CASES: dict[str, RowCase] = cases(RowCase)
every = pytest.mark.parametrize("name", CASES)


@every
@pytest.mark.parametrize("shape", [(1, 5), (2, 3), (3, 16), (9, 4)])
def test_values_equal_the_formula(name: str, shape: tuple[int, int]) -> None:
    case = CASES[name]
    for scale in (1.0, 30.0):
        s, t = normal(0, *shape, scale=scale), normal(1, *shape)
        assert case.loss(s, t).item() == pytest.approx(case.formula(s.numpy(), t.numpy()), rel=1e-10, abs=1e-15)
    if case.any_width:
        s, t = normal(2, *shape), normal(3, shape[0], 7)
        assert case.loss(s, t).item() == pytest.approx(case.formula(s.numpy(), t.numpy()), rel=1e-10, abs=1e-15)


@every
def test_gradients_of_both_sides(name: str) -> None:
    leaves = normal(4, 5, 3).requires_grad_(), normal(5, 5, 3).requires_grad_()
    assert torch.autograd.gradcheck(CASES[name].loss, leaves)


@every
def test_zero_at_equality_and_order_of_the_batch(name: str) -> None:
    loss = CASES[name].loss
    s, t = normal(6, 7, 4), normal(7, 7, 4)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    value = loss(s, t)
    assert value > 0
    assert loss(t, t).item() == pytest.approx(0.0, abs=1e-25)
    assert bool(torch.isclose(loss(s[order], t[order]), value)) == CASES[name].order_free
    assert not torch.isclose(loss(s[order], t), value)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.rotation_free])
def test_rotation_changes_nothing(name: str) -> None:
    loss = CASES[name].loss
    s, t = normal(8, 6, 4), normal(9, 6, 4)
    rotation = torch.linalg.qr(normal(10, 4, 4))[0]
    torch.testing.assert_close(loss(s @ rotation, t), loss(s, t))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.scale_free])
@pytest.mark.parametrize("scale", [1e-20, 1e-10, 1e10, 1e18])
def test_no_scale_overflows_or_vanishes(name: str, scale: float) -> None:
    loss = CASES[name].loss
    s, t = normal(11, 6, 64), normal(12, 6, 64)
    value = loss(scale * s.float(), t.float())
    assert value.item() == pytest.approx(loss(s, t).item(), rel=1e-4)
    ours, truth = (gradients_at(loss, x, t.to(x.dtype))[0].double() for x in (scale * s.float(), s))
    torch.testing.assert_close(scale * ours, truth, rtol=1e-3, atol=1e-7)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_batch_of_one_is_zero(name: str, dtype: torch.dtype) -> None:
    loss = CASES[name].loss
    s, t = normal(15, 1, 6).to(dtype), normal(16, 1, 6).to(dtype)
    assert loss(s, t) == 0
    assert all((g == 0).all() for g in gradients_at(loss, s, t))


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("who", ["student", "teacher", "both", "all"])
def test_rows_of_zeros(name: str, dtype: torch.dtype, who: str) -> None:
    case = CASES[name]
    s, t = normal(17, 6, 5), normal(18, 6, 5)
    for x, here in ((s, who != "teacher"), (t, who != "student")):
        if here:
            x[2:4] = 0.0
        if who == "all":
            x[:] = 0.0
    s, t = s.to(dtype), t.to(dtype)
    truth = case.formula(s.double().numpy(), t.double().numpy())
    assert case.loss(s, t).item() == pytest.approx(truth, rel=1e-4, abs=1e-7)
    for g, x in zip(gradients_at(case.loss, s, t), (s, t), strict=True):
        assert g.isfinite().all()
        assert g.abs().max() < 1e3
        if case.flat_at_zero_rows:
            assert (g[(x == 0).all(1)] == 0).all()


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    s, t = normal(19, 16, 1024, scale=3.0).relu(), normal(20, 16, 1024, scale=3.0).relu()
    truth, exact = case.loss(s, t).item(), gradients_at(case.loss, s, t)
    half = case.loss(s.to(dtype), t.to(dtype))
    leaves = [x.float().requires_grad_() for x in (s, t)]
    with torch.autocast("cpu", dtype=dtype):
        auto = case.loss(*leaves)
    auto_gradients = torch.autograd.grad(auto, leaves)
    assert half.dtype == auto.dtype == torch.float32
    assert half.item() == pytest.approx(truth, rel=1e-2)
    assert auto.item() == pytest.approx(truth, rel=1e-4)
    for g, a, e in zip(gradients_at(case.loss, s.to(dtype), t.to(dtype)), auto_gradients, exact, strict=True):
        assert g.dtype == dtype
        assert a.norm().item() == pytest.approx(e.norm().item(), rel=1e-4)
    upcast = gradients_at(case.loss, s.to(dtype).float(), t.to(dtype).float())
    for g, e in zip(upcast, exact, strict=True):
        assert g.norm().item() == pytest.approx(e.norm().item(), rel=case.rel)


@pytest.mark.parametrize("options", [o for o in OPTIONS if flags(o).zero_of_one_sample], ids=str)
def test_modules_learn_nothing_from_a_single_sample(options: Any) -> None:
    loss, s, t = build(options), output(SMALL, 10, n=1), output(BIG, 11, n=1)
    value = value_of(loss, s, t)
    value.backward()
    assert value == 0
    for x in (*s.features.values(), *t.features.values(), *loss.parameters()):
        assert x.grad is None or not x.grad.any()


def converted(side: Output, dtype: torch.dtype) -> Output:
    maps = ({name: f.to(dtype) for name, f in x.items()} for x in (side.features, side.preactivations))
    return Output(side.logits.to(dtype), *maps)


@pytest.mark.parametrize("options", [o for o in OPTIONS if kind_of(o) == "relation" and o.name != "crd"], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_modules_in_low_precision(options: Any, dtype: torch.dtype) -> None:
    loss, s, t = build(options), output(SMALL, 12, n=16).detach(), output(BIG, 13, n=16).detach()
    plain = value_of(loss, s, t)
    with torch.autocast("cpu", dtype=dtype):
        values: list[Tensor] = [value_of(loss, s, t), value_of(loss, converted(s, dtype), converted(t, dtype))]
    for value in values:
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(plain.item(), rel=1e-2)
