"""Activation boundaries."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from kdschemes.config.losses import feature as config
from kdschemes.core.types import Output
from kdschemes.losses.feature.ab import ab
from kdschemes.losses.stages import match_size
from tests.losses.cases import Flags, Inputs, MapCase, Parameters, Reference
from tests.losses.formulas import Array, to_smaller
from tests.losses.stubs import (
    BIG,
    SMALL,
    build,
    output,
    value_of,
)


def formula(student: Array, teacher: Array, *, margin: float) -> float:
    total = 0.0
    student, teacher = to_smaller(student, teacher)
    for s, t in zip(student.ravel(), teacher.ravel(), strict=True):
        if s > -margin and t <= 0:
            total += (s + margin) ** 2
        if s <= margin and t > 0:
            total += (s - margin) ** 2
    return total / len(student)


CASES = {"ab": MapCase(partial(ab, margin=0.7), partial(formula, margin=0.7), teacher_differentiable=False, zero=False)}
OPTIONS = [config.AB(margin=0.5, scale=2.0)]
FLAGS = Flags(teacher_gradient=False)


def boundaries(x: Inputs, p: Parameters) -> Tensor:
    return 0.003 * ab(x["s"], x["t"])


REFERENCES: dict[str, Reference] = {
    "AB.RepDistiller": boundaries,
    "AB.mmrazor": boundaries,
    "AB.RepDistiller_2stage": lambda x, p: 0.003 * (0.5 * ab(x["s"], x["t"]) + ab(x["s2"], x["t2"])),
    "AB.torchdistill": lambda x, p: ab(x["s"], x["t"]),
}


def single(x: float) -> Tensor:
    return torch.full((1, 1, 1, 1), x, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(
    ("student", "teacher", "value", "slope"),
    [
        (0.25, 1.0, 0.75**2, -1.5),
        (1.0, 1.0, 0.0, 0.0),
        (3.0, 1e-9, 0.0, 0.0),
        (0.25, 0.0, 1.25**2, 2.5),
        (-1.0, -2.0, 0.0, 0.0),
        (-3.0, -2.0, 0.0, 0.0),
        (-3.0, 2.0, 16.0, -8.0),
    ],
)
def test_value_and_gradient_by_region(student: float, teacher: float, value: float, slope: float) -> None:
    s = single(student)
    loss = ab(s, single(teacher), margin=1.0)
    (gradient,) = torch.autograd.grad(loss, s)
    assert (loss.item(), gradient.item()) == pytest.approx((value, slope))


def test_only_the_teachers_sign_counts() -> None:
    generator = torch.Generator().manual_seed(0)
    s, t = (torch.randn(3, 4, 5, 5, generator=generator) for _ in range(2))
    value = ab(s, t)
    assert ab(s, 100 * t) == value
    assert ab(s, t.relu()) == value
    assert ab(t.sign(), t) == 0
    teacher = t.requires_grad_()
    ab(s.requires_grad_(), teacher).backward()
    assert teacher.grad is None


def test_the_module_halves_the_weight_of_each_shallower_pair() -> None:
    s, t = output(SMALL, 6), output(BIG, 7)
    loss = build(config.AB(margin=0.5, scale=2.0))
    expected = torch.zeros(())
    for (a, b), connector, weight in zip(loss.pairs, loss.connectors, (0.25, 0.5, 1.0), strict=True):
        ours, theirs = match_size(s.preactivations[a], t.preactivations[b])
        expected = expected + 2.0 * weight * ab(connector(ours), theirs, margin=0.5)
    torch.testing.assert_close(value_of(loss, s, t), expected)
    assert loss.reads_preactivations
    plain = Output(s.logits, s.preactivations)
    torch.testing.assert_close(value_of(loss, plain, t), expected)
