"""Transformed teacher matching: only the teacher's output is softened."""

from __future__ import annotations

import pytest
import torch

from kdschemes.config.losses import response as config
from kdschemes.losses.response.kd import kd
from kdschemes.losses.response.ttm import ttm
from tests.losses.cases import LogitCase
from tests.losses.formulas import Array, divergence, log_softmax
from tests.losses.inputs import gradient, logits


def formula(student: Array, teacher: Array, *, temperature: float) -> float:
    rows = [divergence(log_softmax(v / temperature), log_softmax(z)) for z, v in zip(student, teacher, strict=True)]
    return sum(rows) / len(rows)


CASES = {"ttm": LogitCase(lambda z, v, y: ttm(z, v, temperature=3.0), zero=False)}
OPTIONS = [config.TTM(temperature=3.0), config.TTM(standardize=True)]


SIZES = pytest.mark.parametrize(("n", "c"), [(6, 10), (1, 5), (7, 2), (4, 100), (9, 3)])


@SIZES
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0, 10.0])
def test_value_equals_the_formula(n: int, c: int, scale: float, temperature: float) -> None:
    z, v = logits(0, n, c, scale), logits(1, n, c, scale)
    truth = formula(z.numpy(), v.numpy(), temperature=temperature)
    assert ttm(z, v, temperature=temperature).item() == pytest.approx(truth, rel=1e-10)


def test_zero_where_the_student_is_the_softened_teacher() -> None:
    v, t = logits(2, scale=4.0), 5.0
    z = (v / t).requires_grad_()
    value = ttm(z, v, temperature=t)
    assert value.item() == pytest.approx(0.0, abs=1e-28)
    assert gradient(value, z).abs().max() < 1e-15
    assert ttm(v, v, temperature=t) > 0


def test_is_kd_with_a_renyi_entropy() -> None:
    """D(p_T || q) = T D(p_T || q_T) - (T - 1) H_{1/T}(q) + (T - 1) H(p_T), the paper's decomposition."""
    z, v, t = logits(3, n=1), logits(4, n=1), 4.0
    q, p_t = torch.softmax(z, 1), torch.softmax(v / t, 1)
    renyi = torch.log((q ** (1 / t)).sum()) / (1 - 1 / t)
    shannon = -(p_t * p_t.log()).sum()
    expected = t * kd(z, v, temperature=t) / t**2 - (t - 1) * renyi + (t - 1) * shannon
    torch.testing.assert_close(ttm(z, v, temperature=t), expected)
