"""Channel-wise distillation."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from kdschemes.config.losses import feature as config
from kdschemes.errors import UserError
from kdschemes.losses.feature.cwd import cwd
from tests.losses.cases import Flags, MapCase, Reference
from tests.losses.formulas import Array, log_softmax, to_smaller
from tests.losses.inputs import gradient, normal
from tests.losses.stubs import (
    BIG,
    SMALL,
    build,
    output,
    value_of,
)


def formula(student: Array, teacher: Array, *, temperature: float) -> float:
    student, teacher = to_smaller(student, teacher)
    n, c = student.shape[:2]
    total = 0.0
    for i, j in np.ndindex(n, c):
        log_q, log_p = (log_softmax(x[i, j].ravel() / temperature) for x in (student, teacher))
        total += math.fsum(np.exp(b) * (b - a) for a, b in zip(log_q, log_p, strict=True))
    return temperature**2 * total / (n * c)


CASES = {
    "cwd": MapCase(partial(cwd, temperature=4.0), partial(formula, temperature=4.0)),
    "cwd at temperature 1": MapCase(partial(cwd, temperature=1.0), partial(formula, temperature=1.0)),
}
OPTIONS = [config.CWD(stages="last")]
FLAGS = Flags(needs_positions=True)
REFERENCES: dict[str, Reference] = {"CWD.mmrazor": lambda x, p: cwd(x["s"], x["t"], temperature=float(p["T"]))}


SHAPES = [((3, 5, 4, 4), (3, 5, 4, 4)), ((2, 3, 8, 6), (2, 3, 4, 3)), ((1, 4, 3, 7), (1, 4, 6, 2))]


@pytest.mark.parametrize(("student", "teacher"), SHAPES)
@pytest.mark.parametrize("scale", [0.1, 1.0, 20.0])
def test_value_equals_the_formula(student: tuple[int, ...], teacher: tuple[int, ...], scale: float) -> None:
    s, t = normal(0, *student, scale=scale), normal(1, *teacher, scale=scale)
    arrays = s.numpy(), t.numpy()
    for temperature in (1.0, 4.0, 50.0):
        truth = formula(*arrays, temperature=temperature)
        assert cwd(s, t, temperature=temperature).item() == pytest.approx(truth, rel=1e-10)


def test_invariances() -> None:
    s, t = normal(11, 3, 4, 5, 5), normal(12, 3, 4, 5, 5)
    torch.testing.assert_close(cwd(s + normal(14, 3, 4, 1, 1), t, temperature=2.0), cwd(s, t, temperature=2.0))
    torch.testing.assert_close(cwd(3 * s, 3 * t, temperature=6.0), 9 * cwd(s, t, temperature=2.0))


def test_single_values_have_no_gradient() -> None:
    a, b = normal(25, 1, 3, 1, 1).requires_grad_(), normal(26, 1, 3, 1, 1)
    single = cwd(a, b, temperature=4.0)
    assert single.item() == 0.0
    assert gradient(single, a).abs().max() == 0


def test_offsets_cost_no_precision() -> None:
    ours, theirs = normal(27, 4, 3, 6, 6).float() + 1000.0, normal(28, 4, 3, 6, 6).float() + 1000.0
    truth = formula(ours.double().numpy(), theirs.double().numpy(), temperature=4.0)
    assert cwd(ours, theirs, temperature=4.0).item() == pytest.approx(truth, rel=1e-4)


def test_the_modules_value_is_that_of_the_function() -> None:
    s, t = output(SMALL, 1), output(SMALL, 51)
    value = value_of(build(config.CWD(temperature=2.0, stages="last"), teacher=SMALL), s, t)
    assert value == cwd(s.features["block3"], t.features["block3"], temperature=2.0)


@pytest.mark.parametrize(
    ("options", "student", "teacher", "message"),
    [
        (config.CWD(), {"v": (8,)}, BIG, r"cwd .*'v' is a vector of 8"),
        (config.CWD(stages="last"), {"v": (8, 1, 1)}, BIG, r"'v:layer3'.*1x1"),
        (config.CWD(), {"u": (8, 1, 1), "v": (8, 1, 1)}, BIG, r"every .*1x1"),
    ],
)
def test_undefined_losses_are_refused_when_built(options: Any, student: Any, teacher: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build(options, student, teacher)
    assert "\n" not in str(error.value)
