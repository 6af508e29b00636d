"""Checks of every loss between logits: precision, extreme logits, layout, order, gradients, equality."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from kdschemes.errors import UserError
from kdschemes.losses.build import MODULES
from kdschemes.losses.response.base import LogitLoss
from kdschemes.losses.response.standardize import standardize
from tests.losses.cases import LogitCase
from tests.losses.inputs import case as told
from tests.losses.inputs import gradient, gradients, gradients_at, logits, logits_and_labels
from tests.losses.stubs import BIG, SMALL, build, output, value_of
from tests.losses.table import OPTIONS, cases, kind_of

CASES: dict[str, LogitCase] = cases(LogitCase)
every = pytest.mark.parametrize("name", CASES)
OF_LOGITS = [o for o in OPTIONS if kind_of(o) == "response" or hasattr(o, "standardize")]


def value_and_gradient(case: LogitCase, z: Tensor, v: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    z = z.detach().requires_grad_()
    value = case.loss(z, v, y)
    return value.detach(), gradient(value, z)


def with_labels(case: LogitCase, y: Tensor, z: Tensor, v: Tensor) -> Tensor:
    return case.loss(z, v, y)


def rounding(gradient: Tensor) -> float:
    """Half of the smallest number that the gradient's dtype has, for each element: what underflow alone can cost."""
    least = torch.finfo(gradient.dtype).smallest_normal * torch.finfo(gradient.dtype).eps
    return float(0.5 * least * gradient.numel() ** 0.5)


@every
def test_gradients_of_both_sides(name: str) -> None:
    case = CASES[name]
    for n, c in ((4, 5), (1, 4), (3, 2)):
        with told(n, c):
            z, v, y = logits_and_labels(1, n, c)
            loss = partial(with_labels, case, y)
            if case.student_differentiable:
                assert torch.autograd.gradcheck(loss, (z.requires_grad_(), v), atol=1e-6)
            if case.teacher_differentiable:
                assert torch.autograd.gradcheck(loss, (z, v.requires_grad_()), atol=1e-6)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    for c, scale in ((10, 1.0), (100, 3.0), (1000, 0.3), (20, 0.3), (20, 1.0), (20, 10.0)):
        with told(c, scale):
            z, v, y = logits_and_labels(2, c=c, scale=scale)
            z, v = z.to(dtype), v.to(dtype)
            truth, slope = value_and_gradient(case, z.double(), v.double(), y)
            value, found = value_and_gradient(case, z, v, y)
            assert value.dtype == torch.float32
            assert value.item() == pytest.approx(truth.item(), rel=case.rel)
            assert found.dtype == dtype
            assert (found.double() - slope).norm() < 1e-2 * slope.norm() + rounding(found)


@every
def test_autocast_changes_nothing(name: str) -> None:
    case, (z, v, y) = CASES[name], logits_and_labels(3)
    plain = value_and_gradient(case, z.float(), v.float(), y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = value_and_gradient(case, z.float(), v.float(), y)
    assert inside[0].dtype == torch.float32
    assert torch.equal(plain[0], inside[0])
    if not case.multiplies_matrices:
        assert torch.equal(plain[1], inside[1])


@every
def test_value_and_gradients_are_finite_at_extreme_logits(name: str) -> None:
    case = CASES[name]
    dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    labels = ([0, 1, 2, 0, 2], [1, 2, 0, 1, 1])
    for dtype, gap, y in product(dtypes, (0.0, 18.0, 104.0, 1000.0, 3e4), labels):
        with told(dtype, gap, y):
            z = gap * torch.tensor([[1.0, 0, 0], [0, 1, -1], [1, 1, 0.9], [0, 0, 0], [0, 1, 0]], dtype=dtype)
            v = gap * torch.tensor([[0.0, 1, 0], [0, 1, 0.1], [1, 1, 0.9], [1, 0, 0], [0, 0, 0]], dtype=dtype)
            check_finite(case, z, v, torch.tensor(y))


def check_finite(case: LogitCase, z: Tensor, v: Tensor, y: Tensor) -> Tensor:
    """Check the value and both gradients; return the value."""
    value = case.loss(z.requires_grad_(), v.requires_grad_(), y)
    assert value.isfinite()
    for g in torch.autograd.grad(value, (z, v), allow_unused=not case.reads_teacher):
        assert g is None or g.isfinite().all()
    return value.detach()


EXTREMES = [
    torch.tensor([[0.0, 104.0, 0.0], [1000.0, 0.0, 0.0], [0.0, 0.0, 0.0], [-1e4, 1e4, 0.0]]),
    torch.tensor([[0.0, 1000.0, -1000.0], [0.0, 1e4, 0.0], [5.0, 5.0, 5.0], [1e4, -1e4, 0.0]]),
    torch.zeros(4, 3),
]


@every
def test_values_at_extreme_logits(name: str) -> None:
    case, y = CASES[name], torch.arange(4) % 3
    pairs = ((0, 1), (1, 0), (0, 0), (0, 2), (2, 1), (2, 2))
    for dtype, pair in product((torch.float32, torch.float64, torch.bfloat16), pairs):
        with told(dtype, pair):
            z, v = (EXTREMES[i].to(dtype).clone() for i in pair)
            value = check_finite(case, z, v, y)
            truth = case.loss(z.detach().double(), v.detach().double(), y)
            assert value.item() == pytest.approx(truth.item(), rel=1e-4, abs=1e-12)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_wide_logits_of_many_classes(name: str, dtype: torch.dtype) -> None:
    case, (z, v, y) = CASES[name], logits_and_labels(4, n=2, c=1000, scale=50.0)
    z, v = z.to(dtype), v.to(dtype)
    truth, slope = value_and_gradient(case, z.double(), v.double(), y)
    value, found = value_and_gradient(case, z, v, y)
    assert value.item() == pytest.approx(truth.item(), rel=case.rel)
    assert (found.double() - slope).norm() < 1e-2 * slope.norm() + rounding(found)


@every
@pytest.mark.parametrize("c", [2, 7])
def test_batch_of_one(name: str, c: int) -> None:
    z, v = logits(44, 1, c), logits(45, 1, c)
    value, found = value_and_gradient(CASES[name], z, v, torch.tensor([1]))
    assert value.isfinite()
    assert found.isfinite().all()


@every
def test_layout_and_order(name: str) -> None:
    case, (z, v, y) = CASES[name], logits_and_labels(5)
    value, found = value_and_gradient(case, z, v, y)
    assert value > 0
    columns = value_and_gradient(case, z.T.contiguous().T, v.T.contiguous().T, y)
    torch.testing.assert_close(columns, (value, found))
    torch.testing.assert_close(case.loss(z.T.contiguous().T, v.repeat(1, 2)[:, 10:], y), value)
    samples, classes = torch.tensor([3, 1, 5, 0, 4, 2]), torch.tensor([7, 2, 9, 0, 1, 8, 3, 6, 5, 4])
    torch.testing.assert_close(case.loss(z[samples], v[samples], y[samples]), value)
    torch.testing.assert_close(case.loss(z[:, classes], v[:, classes], classes.argsort()[y]), value)
    if case.shift_free:
        torch.testing.assert_close(case.loss(z + torch.arange(6.0)[:, None], v - 3.0, y), value)


def check_gradient_in_float32(loss: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Compare the gradient at a float32 input with the one that float64 gives for the same numbers."""
    found, truth = gradients_at(loss, x)[0], gradients_at(loss, x.double())[0]
    assert (found - truth).abs().max() < 3e-6 * truth.abs().max()


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.shift_free])
@pytest.mark.parametrize("offsets", [(1e4, 0.0), (-1e4, 1e4)], ids=str)
def test_a_common_offset_costs_no_digits(name: str, offsets: tuple[float, float]) -> None:
    case, (z, v, y) = CASES[name], logits_and_labels(8)
    sides = [(x + offset).float() for x, offset in zip((z, v), offsets, strict=True)]
    check_gradient_in_float32(lambda z: case.loss(z, sides[1].to(z.dtype), y), sides[0])
    if case.reads_teacher and case.teacher_gradient:
        check_gradient_in_float32(lambda v: case.loss(sides[0].to(v.dtype), v, y), sides[1])


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.by_sample])
def test_a_batch_is_the_mean_of_its_samples(name: str) -> None:
    case, (z, v, y) = CASES[name], logits_and_labels(6)
    rows = [case.loss(z[i : i + 1], v[i : i + 1], y[i : i + 1]) for i in range(6)]
    torch.testing.assert_close(case.loss(z, v, y), torch.stack(rows).mean())


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.zero])
def test_zero_where_both_are_equal(name: str) -> None:
    case, (z, v, y) = CASES[name], logits_and_labels(7)
    for x in (z, 30 * z):
        value, found = value_and_gradient(case, x.float(), x.float(), y)
        assert value.item() == 0.0
        assert found.abs().max() == 0.0
        if case.shift_free:
            shifted, found = value_and_gradient(case, (x + 8.0).float(), x.float(), y)
            assert 0.0 <= shifted.item() < 1e-9
            assert found.abs().max() < 1e-4
    equal = (2.0 * v).requires_grad_()
    value = case.loss(equal, 2.0 * v, y)
    assert value.item() == pytest.approx(0.0, abs=1e-25)
    assert gradients(value, equal)[0].abs().max() < 1e-14


def is_a_function(options: Any) -> bool:
    module = MODULES[type(options)]
    return isinstance(module, partial) and module.func is LogitLoss


@pytest.mark.parametrize("options", [o for o in OPTIONS if is_a_function(o)], ids=str)
def test_modules_give_the_functions_values(options: Any) -> None:
    s, t, made = output(SMALL, 8), output(BIG, 9), MODULES[type(options)]
    assert isinstance(made, partial)
    z, v = (standardize(x.logits) if getattr(options, "standardize", False) else x.logits for x in (s, t))
    function, labels = made.args[0], [torch.arange(5) % 3] if made.keywords.get("labels") else []
    chosen = {name: getattr(options, name) for name in signature(function).parameters if hasattr(options, name)}
    assert value_of(build(options), s, t) == function(z, v, *labels, **chosen)


@pytest.mark.parametrize("options", OF_LOGITS, ids=str)
def test_one_class_is_refused(options: Any) -> None:
    with pytest.raises(UserError, match=rf"^{options.name} .*2 classes"):
        build(options, classes=1)


@pytest.mark.parametrize(
    "options", list({type(o): o for o in OF_LOGITS if hasattr(o, "standardize")}.values()), ids=lambda o: o.name
)
def test_standardized_logits_have_no_scale(options: Any) -> None:
    s, t = output(SMALL, 4), output(BIG, 5)
    louder = type(s)(3.0 * s.logits + 1.0, s.features)
    loss = build(type(options)(standardize=True))
    torch.testing.assert_close(value_of(loss, louder, t), value_of(loss, s, t), rtol=1e-4, atol=1e-6)
    plain = build(type(options)())
    assert value_of(plain, louder, t) != value_of(plain, s, t)
