"""Correlation congruence."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from kdschemes.config.losses import relation as config
from kdschemes.errors import UserError
from kdschemes.losses.relation.cc import kernel_congruence, neighbor_congruence
from kdschemes.losses.rows import unit_rows
from tests.losses.cases import Flags, Reference, RowCase
from tests.losses.formulas import Array, dot, unit
from tests.losses.inputs import normal
from tests.losses.stubs import BIG, SMALL, build, output, value_of


def formula_of_neighbors(student: Array, teacher: Array) -> float:
    n = len(student)
    if n == 1:
        return 0.0
    total = 0.0
    for i in range(n - 1):
        for d in range(student.shape[1]):
            total += abs(student[i, d] - teacher[i, d]) * abs(student[i + 1, d] - teacher[i + 1, d])
    return total / (n - 1)


def formula_of_kernel(student: Array, teacher: Array, *, gamma: float, order: int) -> float:
    n = len(student)

    def kernel(x: Array, i: int, j: int) -> float:
        cosine = dot(unit(x[i]), unit(x[j]))
        return math.exp(-2 * gamma) * sum((2 * gamma * cosine) ** p / math.factorial(p) for p in range(order + 1))

    pairs = [(i, j) for i in range(n) for j in range(n)]
    return math.fsum((kernel(student, *m) - kernel(teacher, *m)) ** 2 for m in pairs) / n**2


CASES = {
    "cc of neighbors": RowCase(
        neighbor_congruence, formula_of_neighbors, any_width=False, order_free=False, rotation_free=False
    ),
    "cc of kernels": RowCase(
        partial(kernel_congruence, gamma=0.4, order=2),
        partial(formula_of_kernel, gamma=0.4, order=2),
        scale_free=True,
        flat_at_zero_rows=True,
    ),
}
OPTIONS = [config.CC(variant="kernel")]
FLAGS = Flags(vectors=True, zero_of_one_sample=True)
REFERENCES: dict[str, Reference] = {
    "CC.RepDistiller": lambda x, p: neighbor_congruence(x["s"], x["t"]),
    "CC.KDZoo": lambda x, p: kernel_congruence(x["s"], x["t"], gamma=p["g"], order=p["P"]),
}


def test_kernel_series_tends_to_the_gaussian_kernel() -> None:
    s, t = unit_rows(normal(25, 6, 4)), unit_rows(normal(26, 6, 5))
    exact = (
        (torch.exp(-0.4 * torch.cdist(s, s).square()) - torch.exp(-0.4 * torch.cdist(t, t).square())).square().mean()
    )
    torch.testing.assert_close(kernel_congruence(s, t, gamma=0.4, order=30), exact)


def test_the_modules_value_is_that_of_the_functions() -> None:
    s, t = output(SMALL, 0), output(BIG, 1)
    ours, theirs = s.features["block3"].mean((2, 3)), t.features["layer3"].mean((2, 3))
    cc = build(config.CC())
    first, second = (m for m in cc.modules() if isinstance(m, nn.Linear))
    assert (first.in_features, second.in_features, first.out_features) == (8, 12, 128)
    torch.testing.assert_close(value_of(cc, s, t), neighbor_congruence(first(ours), second(theirs)))
    kernel = build(config.CC(variant="kernel"))
    assert not list(kernel.parameters())
    torch.testing.assert_close(value_of(kernel, s, t), kernel_congruence(ours, theirs, gamma=0.4, order=2))


@pytest.mark.parametrize(
    ("options", "student", "teacher", "message"),
    [
        (config.CC(stages=["s9:layer1"]), SMALL, BIG, r"student stage 's9'"),
    ],
)
def test_undefined_losses_are_refused_when_built(options: Any, student: Any, teacher: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build(options, student, teacher)
    assert "\n" not in str(error.value)
