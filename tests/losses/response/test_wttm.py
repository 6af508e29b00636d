"""Transformed teacher matching weighted by the teacher's power sum."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdschemes.config.losses import response as config
from kdschemes.losses.response.ttm import ttm
from kdschemes.losses.response.wttm import wttm
from tests.losses.cases import LogitCase
from tests.losses.formulas import Array, log_softmax, softmax
from tests.losses.inputs import gradient, gradients, logits


def formula(student: Array, teacher: Array, *, temperature: float) -> float:
    """The teacher's probabilities are raised to a power and normalized, as the authors write it."""
    total = 0.0
    for z, v in zip(student, teacher, strict=True):
        powers = np.array([p ** (1 / temperature) for p in softmax(v)])
        target = powers / powers.sum()
        total += powers.sum() * math.fsum(
            t * (math.log(t) - q) for t, q in zip(target, log_softmax(z), strict=True) if t > 0
        )
    return float(total / len(student))


CASES = {"wttm": LogitCase(lambda z, v, y: wttm(z, v, temperature=3.0), teacher_differentiable=False, zero=False)}
OPTIONS = [config.WTTM(temperature=3.0), config.WTTM(standardize=True)]


SIZES = pytest.mark.parametrize(("n", "c"), [(6, 10), (1, 5), (7, 2), (4, 100), (9, 3)])


@SIZES
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0, 10.0])
def test_value_equals_the_formula(n: int, c: int, scale: float, temperature: float) -> None:
    z, v = logits(0, n, c, scale), logits(1, n, c, scale)
    truth = formula(z.numpy(), v.numpy(), temperature=temperature)
    assert wttm(z, v, temperature=temperature).item() == pytest.approx(truth, rel=1e-10)


def test_zero_where_the_student_is_the_softened_teacher() -> None:
    v, t = logits(2, scale=4.0), 5.0
    z = (v / t).requires_grad_()
    value = wttm(z, v, temperature=t)
    assert value.item() == pytest.approx(0.0, abs=1e-28)
    assert gradient(value, z).abs().max() < 1e-15


def test_the_weight_is_the_power_sum_and_gets_no_gradient() -> None:
    z, v, t = logits(5).requires_grad_(), logits(6, scale=3.0).requires_grad_(), 4.0
    weights = (torch.softmax(v, 1) ** (1 / t)).sum(1).detach()
    rows = torch.stack([ttm(z[i : i + 1], v[i : i + 1], temperature=t) for i in range(6)])
    value = wttm(z, v, temperature=t)
    torch.testing.assert_close(value, (weights * rows).mean())
    for ours, truth in zip(gradients(value, z, v), gradients((weights * rows).mean(), z, v), strict=True):
        torch.testing.assert_close(ours, truth)
    uniform, sure = torch.zeros(1, 10), 1000.0 * torch.eye(10)[:1]
    for teacher, weight in ((uniform, 10 ** (1 - 1 / t)), (sure, 1.0)):
        student = torch.linspace(0, 1, 10)[None]
        ratio = wttm(student, teacher, temperature=t) / ttm(student, teacher, temperature=t)
        assert ratio.item() == pytest.approx(weight, rel=1e-5)
