"""Cross-entropy with the teacher's decision."""

from __future__ import annotations

import pytest
import torch

from kdschemes.config.losses import response as config
from kdschemes.losses.response.hard import hard
from tests.losses.cases import Flags, LogitCase, Reference
from tests.losses.formulas import Array, cross_entropy, one_hot
from tests.losses.inputs import gradient, logits


def formula(student: Array, teacher: Array) -> float:
    return cross_entropy(student, one_hot([int(row.argmax()) for row in teacher], student.shape[1]))


CASES = {
    "hard": LogitCase(lambda z, v, y: hard(z, v), teacher_differentiable=False, teacher_gradient=False, zero=False)
}
FLAGS = Flags(teacher_gradient=False)
REFERENCES: dict[str, Reference] = {"DeiT_hard": lambda x, p: hard(x["s"], x["t"])}


@pytest.mark.parametrize(("n", "c"), [(6, 10), (1, 4), (5, 2), (2, 100)])
@pytest.mark.parametrize("scale", [0.1, 1.0, 50.0])
def test_value_equals_the_formula(n: int, c: int, scale: float) -> None:
    z, v = logits(0, n, c, scale), logits(1, n, c, scale)
    assert hard(z, v).item() == pytest.approx(formula(z.numpy(), v.numpy()), rel=1e-10)


def test_only_the_order_of_the_teachers_logits_matters() -> None:
    z, v = logits(2).requires_grad_(), logits(3)
    expected = (torch.softmax(z, 1) - torch.eye(10)[v.argmax(1)]) / 6
    torch.testing.assert_close(gradient(hard(z, v), z), expected)
    assert hard(z, v) == hard(z, 5 * v**3)


def test_published_with_half_of_the_weight() -> None:
    assert (config.Hard().ce_weight, config.Hard().weight) == (0.5, 0.5)
