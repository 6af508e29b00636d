"""KD with a temperature for each sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdschemes.config.losses import response as config
from kdschemes.losses.response.logit_mse import logit_mse
from kdschemes.losses.response.normkd import normkd
from tests.losses.cases import LogitCase, Reference
from tests.losses.formulas import Array, kd
from tests.losses.inputs import gradient, logits


def formula(student: Array, teacher: Array, *, temperature: float) -> float:
    total = 0.0
    for z, v in zip(student, teacher, strict=True):
        own, its = (np.std(x, ddof=1) for x in (z, v))
        total += its**2 * kd((z / own)[None], (v / its)[None], temperature=temperature)
    return total / len(student)


CASES = {"normkd": LogitCase(lambda z, v, y: normkd(z, v), teacher_differentiable=False)}
OPTIONS = [config.NormKD(temperature=1.0)]
REFERENCES: dict[str, Reference] = {"NormKD": lambda x, p: normkd(x["s"], x["t"], temperature=float(p["T"]))}


@pytest.mark.parametrize(("n", "c"), [(6, 10), (1, 4), (5, 3), (2, 100)])
@pytest.mark.parametrize("temperature", [1.0, 4.0, 100.0])
@pytest.mark.parametrize("scale", [0.1, 1.0, 50.0])
def test_value_equals_the_formula(n: int, c: int, temperature: float, scale: float) -> None:
    z, v = logits(0, n, c, scale), logits(1, n, c, scale)
    truth = formula(z.numpy(), v.numpy(), temperature=temperature)
    assert normkd(z, v, temperature=temperature).item() == pytest.approx(truth, rel=1e-9)


def test_the_scale_of_the_student_does_not_matter_and_that_of_the_teacher_is_squared() -> None:
    z, v = logits(2), logits(3)
    value = normkd(z, v).item()
    assert normkd(7 * z, v).item() == pytest.approx(value, rel=1e-12)
    assert normkd(z, 3 * v).item() == pytest.approx(9 * value, rel=1e-12)
    z.requires_grad_()
    assert (gradient(normkd(z, v), z) * z).sum(dim=1).abs().max() < 1e-15


def test_limit_at_high_temperature() -> None:
    """The squared distance of standardized logits, times the variance of the teacher's."""
    z, v = logits(4, n=1), logits(5, n=1)
    limit = v.var() * logit_mse(z / z.std(), v / v.std())
    torch.testing.assert_close(normkd(z, v, temperature=1e4), limit, rtol=1e-3, atol=0.0)


def test_equal_logits_are_the_uniform_distribution() -> None:
    z, v = torch.zeros(2, 5).requires_grad_(), logits(6, n=2, c=5).float()
    value = normkd(z, v)
    assert value > 0
    assert gradient(value, z).isfinite().all()
    assert normkd(v, z.detach()) == 0
