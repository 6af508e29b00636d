"""Distillation weighted by how hard a sample is for the student and for the teacher."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from kdschemes.config.losses import response as config
from kdschemes.losses.response.soft_ce import soft_ce
from kdschemes.losses.response.wsld import wsld
from tests.losses import formulas
from tests.losses.cases import LogitCase, Reference
from tests.losses.formulas import Array
from tests.losses.inputs import gradient, logits_and_labels


def label_loss(row: Array, label: int) -> float:
    """-log p_y as log(1 + sum of the others' odds), which keeps its digits where p_y is nearly 1."""
    odds = [x - row[label] for c, x in enumerate(row) if c != label]
    largest = max(0.0, *odds)
    if largest > 30:
        return float(largest + math.log(math.exp(-largest) + math.fsum(math.exp(x - largest) for x in odds)))
    return math.log1p(math.fsum(math.exp(x) for x in odds))


def formula(student: Array, teacher: Array, labels: list[int], *, temperature: float) -> float:
    total = 0.0
    for z, v, y in zip(student, teacher, labels, strict=True):
        weight = -math.expm1(-label_loss(z, y) / (label_loss(v, y) + 1e-7))
        total += weight * formulas.soft_ce(z[None], v[None], temperature=temperature)
    return total / len(student)


CASES = {
    "wsld": LogitCase(
        partial(wsld, temperature=2.0), student_differentiable=False, teacher_differentiable=False, zero=False
    )
}
OPTIONS = [config.WSLD(temperature=3.0)]
REFERENCES: dict[str, Reference] = {
    "WSLD.mmrazor": lambda x, p: wsld(x["s"], x["t"], x["y"], temperature=float(p["T"]))
}


SIZES = pytest.mark.parametrize(("n", "c"), [(6, 10), (1, 4), (5, 2), (2, 100)])


@SIZES
@pytest.mark.parametrize("temperature", [1.0, 4.0, 100.0])
@pytest.mark.parametrize("scale", [0.1, 1.0, 50.0])
def test_value_equals_the_formula(n: int, c: int, temperature: float, scale: float) -> None:
    z, v, y = logits_and_labels(4, n, c, scale)
    value = wsld(z, v, y, temperature=temperature)
    truth = formula(z.numpy(), v.numpy(), y.tolist(), temperature=temperature)
    assert value.item() == pytest.approx(truth, rel=1e-10, abs=1e-12)


def test_the_weights_pass_no_gradient() -> None:
    z, v, y = logits_and_labels(8, n=1)
    z.requires_grad_()
    weight = wsld(z, v, y, temperature=2.0) / soft_ce(z, v, temperature=2.0)
    expected = weight.detach() * gradient(soft_ce(z, v, temperature=2.0), z)
    torch.testing.assert_close(gradient(wsld(z, v, y, temperature=2.0), z), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("ahead", "behind"), [(25.0, 20.0), (20.0, 25.0), (12.0, 12.0), (300.0, 20.0), (20.0, 300.0)])
def test_weights_of_confident_samples(ahead: float, behind: float, dtype: torch.dtype) -> None:
    z = torch.tensor([[ahead, 0.0, 1.0]], dtype=dtype)
    v = torch.tensor([[behind, 1.0, 0.0]], dtype=dtype)
    value = wsld(z, v, torch.tensor([0]), temperature=2.0)
    truth = formula(z.double().numpy(), v.double().numpy(), [0], temperature=2.0)
    assert value.item() == pytest.approx(truth, rel=1e-9 if dtype == torch.float64 else 1e-4, abs=1e-7)


def test_value_of_equal_logits() -> None:
    z, y = torch.zeros(3, 5), torch.tensor([0, 1, 4])
    assert wsld(z, z, y, temperature=2.0).item() == pytest.approx(4 * math.log(5) * (1 - math.exp(-1)), rel=1e-5)


def test_published_with_a_full_hard_term() -> None:
    options = config.WSLD()
    assert (options.ce_weight, options.schedule, options.ramp_epochs) == (1.0, "constant", 20.0)
