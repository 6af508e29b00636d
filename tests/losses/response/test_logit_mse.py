"""Mean squared error of centered logits."""

from __future__ import annotations

import pytest
import torch

from kdschemes.config.losses import response as config
from kdschemes.losses.response.logit_mse import logit_mse
from tests.losses.cases import LogitCase
from tests.losses.formulas import Array
from tests.losses.inputs import logits


def formula(student: Array, teacher: Array) -> float:
    total = 0.0
    for z, v in zip(student, teacher, strict=True):
        total += sum(((a - z.mean()) - (b - v.mean())) ** 2 for a, b in zip(z, v, strict=True)) / (2 * len(z))
    return float(total / len(student))


CASES = {"logit_mse": LogitCase(lambda z, v, y: logit_mse(z, v))}
OPTIONS = [config.LogitMSE(standardize=True)]


def test_value_equals_the_formula() -> None:
    z, v = logits(19), logits(20)
    assert logit_mse(z, v).item() == pytest.approx(formula(z.numpy(), v.numpy()), rel=1e-13)


def test_a_shift_of_the_student_changes_nothing() -> None:
    z, v, shift = logits(11), logits(12), logits(13, c=1)
    torch.testing.assert_close(logit_mse(z + shift, v), logit_mse(z, v))


def test_gradients_of_both_sides() -> None:
    z, v = logits(15, n=3, c=4).requires_grad_(), logits(16, n=3, c=4).requires_grad_()
    assert torch.autograd.gradcheck(logit_mse, (z, v))
