"""Mean squared error of features, after a regressor where shapes differ."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from kdschemes.config.losses import feature as config
from kdschemes.errors import UserError
from kdschemes.losses.feature.hint import hint
from tests.losses import formulas
from tests.losses.cases import MapCase, Reference
from tests.losses.inputs import normal
from tests.losses.stubs import (
    SMALL,
    batch,
    build,
    output,
    same,
)

CASES = {"hint": MapCase(hint, formulas.hint, resizes=False)}
REFERENCES: dict[str, Reference] = {"FitNet.RepDistiller": lambda x, p: hint(x["s"], x["t"])}


def test_value_equals_the_formula() -> None:
    s, t = normal(0, 3, 4, 5, 2), normal(1, 3, 4, 5, 2)
    assert hint(s, t).item() == pytest.approx(formulas.hint(s.numpy(), t.numpy()), rel=1e-13)
    assert hint(s.flatten(1), t.flatten(1)) == hint(s, t)
    assert hint(s, s) == 0


def test_broadcasting_is_refused() -> None:
    with pytest.raises((AssertionError, TypeError), match=r"against|teacher"):
        hint(normal(0, 3, 4), normal(1, 3, 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision(dtype: torch.dtype) -> None:
    s = normal(7, 4, 64, 8, 8, scale=3.0).relu()
    truth = hint(s, s.flip(0)).item()
    half = hint(s.to(dtype), s.flip(0).to(dtype))
    with torch.autocast("cpu", dtype=dtype):
        auto = hint(s.float(), s.flip(0).float())
    assert half.dtype == auto.dtype == torch.float32
    assert half.item() == pytest.approx(truth, rel=1e-2)
    assert auto.item() == pytest.approx(truth, rel=1e-5)


def test_gradients_of_both_sides() -> None:
    s, t = normal(9, 2, 3, 4, 2).requires_grad_(), normal(11, 2, 3, 4, 2).requires_grad_()
    assert torch.autograd.gradcheck(hint, (s, t))


def test_no_regressor_where_shapes_are_equal() -> None:
    exit_shape = {"exit": (8, 4, 3)}
    loss = build(config.Hint(), student=exit_shape, teacher=SMALL)
    assert not list(loss.parameters())
    s, t = output(exit_shape, 8), output(SMALL, 9)
    assert loss(s, t, batch(), same) == hint(s.features["exit"], t.features["block3"])


@pytest.mark.parametrize(
    ("student", "teacher", "kind"),
    [
        ((4, 8, 8), (6, 8, 8), nn.Conv2d),
        ((4, 8, 8), (4, 4, 4), nn.Conv2d),
        ((4, 3, 8), (6, 8, 5), nn.Conv2d),
        ((5,), (9,), nn.Linear),
        ((10, 5), (10, 9), nn.Linear),
        ((16, 5), (4, 9), nn.Conv2d),
        ((16, 5), (6, 4, 4), nn.Conv2d),
        ((6, 4, 4), (16, 5), nn.Conv2d),
        ((16, 5), (16, 5), nn.Identity),
    ],
)
def test_the_regressor_fits_the_shapes(student: tuple[int, ...], teacher: tuple[int, ...], kind: type) -> None:
    loss = build(config.Hint(), student={"s": student}, teacher={"t": teacher})
    (regressor,) = next(iter(loss.children()))
    assert type(regressor) is kind
    s, t = output({"s": student}, 10), output({"t": teacher}, 11)
    value = loss(s, t, batch(), same)
    value.backward()
    assert value > 0
    gradient = s.features["s"].grad
    assert gradient is not None
    assert gradient.abs().sum() > 0


def test_regression_of_a_pooled_map_is_the_pooled_regression() -> None:
    loss = build(config.Hint(), student={"s": (4, 8, 8)}, teacher={"t": (6, 4, 2)})
    s, t = output({"s": (4, 8, 8)}, 12), output({"t": (6, 4, 2)}, 13)
    (regressor,) = next(iter(loss.children()))
    pooled_after = nn.functional.adaptive_avg_pool2d(regressor(s.features["s"]), (4, 2))
    torch.testing.assert_close(loss(s, t, batch(), same), hint(pooled_after, t.features["t"]))


@pytest.mark.parametrize(
    ("options", "student", "teacher", "message"),
    [
        (config.Hint(stages="last"), SMALL, {"v": (8,)}, r"hint .*'v' is a vector of 8"),
        (config.Hint(stages="last"), {"x": (10, 4)}, {"y": (12, 4)}, r"'x' is 10 tokens"),
    ],
)
def test_undefined_losses_are_refused_when_built(options: Any, student: Any, teacher: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build(options, student, teacher)
    assert "\n" not in str(error.value)
