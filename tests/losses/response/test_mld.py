"""Each class as a binary problem of its own."""

from __future__ import annotations

import math

import pytest
import torch

from kdschemes.config.losses import response as config
from kdschemes.losses.response.mld import mld
from tests.losses.cases import LogitCase, Reference
from tests.losses.formulas import Array
from tests.losses.inputs import gradient, logits


def formula(student: Array, teacher: Array, *, temperature: float) -> float:
    """The sum over both outcomes of each class, by logarithms of 1 + exp."""
    total = 0.0
    for z, v in zip(student.ravel() / temperature, teacher.ravel() / temperature, strict=True):
        for sign in (1, -1):
            p = 1 / (1 + math.exp(-sign * v))
            total += p * (math.log1p(math.exp(-sign * z)) - math.log1p(math.exp(-sign * v)))
    return temperature**2 * total / len(student)


CASES = {"mld": LogitCase(lambda z, v, y: mld(z, v, temperature=2.0), shift_free=False)}
OPTIONS = [config.MLD(temperature=4.0)]
REFERENCES: dict[str, Reference] = {"MLD.L2D": lambda x, p: mld(x["s"], x["t"])}


@pytest.mark.parametrize(("n", "c"), [(6, 10), (1, 4), (5, 2), (2, 100)])
@pytest.mark.parametrize("temperature", [1.0, 4.0, 30.0])
@pytest.mark.parametrize("scale", [0.1, 1.0, 20.0])
def test_value_equals_the_formula(n: int, c: int, temperature: float, scale: float) -> None:
    z, v = logits(0, n, c, scale), logits(1, n, c, scale)
    truth = formula(z.numpy(), v.numpy(), temperature=temperature)
    assert mld(z, v, temperature=temperature).item() == pytest.approx(truth, rel=1e-9)


def test_gradient_is_the_difference_of_the_probabilities() -> None:
    z, v = logits(2).requires_grad_(), logits(3)
    expected = 3.0 * (torch.sigmoid(z / 3) - torch.sigmoid(v / 3)) / 6
    torch.testing.assert_close(gradient(mld(z, v, temperature=3.0), z), expected)


def test_limit_at_high_temperature() -> None:
    z, v = logits(4), logits(5)
    limit = (z - v).square().sum(1).mean() / 8
    torch.testing.assert_close(mld(z, v, temperature=1e4), limit, rtol=1e-6, atol=0.0)
