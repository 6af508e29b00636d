"""Inter-channel correlations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from kdschemes.config.losses import feature as config
from kdschemes.errors import UserError
from kdschemes.losses.feature.ickd import channel_correlation, ickd
from tests.losses.cases import Flags, MapCase
from tests.losses.formulas import Array
from tests.losses.inputs import gradient, normal
from tests.losses.stubs import (
    BIG,
    build,
)


def formula_of_correlation(sample: Array) -> Array:
    c = len(sample)
    out = np.zeros((c, c))
    for i in range(c):
        row = [math.fsum(sample[i].ravel() * sample[j].ravel()) for j in range(c)]
        length = math.sqrt(math.fsum(v * v for v in row))
        out[i] = [v / length if length else 0.0 for v in row]
    return out


def formula(student: Array, teacher: Array) -> float:
    n, c = student.shape[:2]
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        total += math.fsum(((formula_of_correlation(s) - formula_of_correlation(t)) ** 2).ravel())
    return total / (n * c)


CASES = {"ickd": MapCase(ickd, formula)}
FLAGS = Flags(vectors=True)


SHAPES = [((3, 5, 4, 4), (3, 5, 4, 4)), ((2, 3, 8, 6), (2, 3, 4, 3)), ((1, 4, 3, 7), (1, 4, 6, 2))]


@pytest.mark.parametrize(("student", "teacher"), SHAPES)
@pytest.mark.parametrize("scale", [0.1, 1.0, 20.0])
def test_value_equals_the_formula(student: tuple[int, ...], teacher: tuple[int, ...], scale: float) -> None:
    s, t = normal(0, *student, scale=scale), normal(1, *teacher, scale=scale)
    arrays = s.numpy(), t.numpy()
    assert ickd(s, t).item() == pytest.approx(formula(*arrays), rel=1e-10)


def test_invariances() -> None:
    s, t = normal(11, 3, 4, 5, 5), normal(12, 3, 4, 5, 5)
    torch.testing.assert_close(ickd(s * normal(15, 3, 1, 1, 1), t), ickd(s, t))
    rotation = torch.linalg.qr(normal(16, 25, 25))[0]
    turned = (s.flatten(2) @ rotation).unflatten(2, (5, 5))
    torch.testing.assert_close(ickd(turned, t), ickd(s, t))
    torch.testing.assert_close(channel_correlation(s).norm(dim=2), torch.ones(3, 4, dtype=torch.float64))


@pytest.mark.parametrize("scale", [1e15, 1e-10])
def test_features_of_any_scale(scale: float) -> None:
    s, t = normal(22, 3, 4, 5, 5), normal(23, 3, 4, 5, 5)
    ours = (s * scale).float().requires_grad_()
    value = ickd(ours, t.float())
    assert value.item() == pytest.approx(formula(s.numpy(), t.numpy()), rel=1e-5)
    assert gradient(value, ours).isfinite().all()


@pytest.mark.parametrize(
    ("options", "student", "teacher", "message"),
    [
        (config.ICKD(), {}, BIG, r"student has no features"),
    ],
)
def test_undefined_losses_are_refused_when_built(options: Any, student: Any, teacher: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build(options, student, teacher)
    assert "\n" not in str(error.value)
