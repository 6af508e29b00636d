"""Teacher-free regularization: a teacher made by hand from the labels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdschemes.config.losses import response as config
from kdschemes.core.loss import Endpoint
from kdschemes.core.types import Batch, DataSpec, Output
from kdschemes.losses.build import build_loss
from kdschemes.losses.response.tfkd_reg import tfkd_reg
from tests.losses.cases import Flags, LogitCase, Reference, with_hard_term
from tests.losses.formulas import Array, log_softmax, softmax
from tests.losses.inputs import logits_and_labels


def formula(student: Array, labels: list[int], *, temperature: float, label_prob: float, multiplier: float) -> float:
    total, classes = 0.0, student.shape[1]
    for z, y in zip(student, labels, strict=True):
        made = np.array([label_prob if c == y else (1 - label_prob) / (classes - 1) for c in range(classes)])
        target = softmax(made / temperature)
        total += math.fsum(target * (np.log(target) - log_softmax(z)))
    return multiplier * total / student.size


CASES = {
    "tfkd_reg": LogitCase(lambda z, v, y: tfkd_reg(z, y), teacher_differentiable=False, reads_teacher=False, zero=False)
}
FLAGS = Flags(teacher_gradient=False, reads_teacher=False)
REFERENCES: dict[str, Reference] = {
    "TF-KD_reg": lambda x, p: with_hard_term(
        p["alpha"], tfkd_reg(x["s"], x["y"], temperature=float(p["T"]), label_prob=0.99, multiplier=p["m"]), x
    )
}


SIZES = pytest.mark.parametrize(("n", "c"), [(6, 10), (1, 4), (5, 2), (2, 100)])


@SIZES
@pytest.mark.parametrize("temperature", [0.1, 1.0, 20.0])
@pytest.mark.parametrize("label_prob", [0.5, 0.99, 1.0])
def test_value_equals_the_formula(n: int, c: int, temperature: float, label_prob: float) -> None:
    z, _, y = logits_and_labels(9, n, c, 3.0)
    value = tfkd_reg(z, y, temperature=temperature, label_prob=label_prob, multiplier=7.0)
    truth = formula(z.numpy(), y.tolist(), temperature=temperature, label_prob=label_prob, multiplier=7.0)
    assert value.item() == pytest.approx(truth, rel=1e-9)


def test_zero_at_the_target() -> None:
    y = torch.tensor([2, 0])
    made = torch.full((2, 5), 0.0025).scatter(1, y[:, None], 0.99)
    assert tfkd_reg(made / 20.0, y).item() == pytest.approx(0.0, abs=1e-12)
    assert tfkd_reg(torch.zeros(2, 5), y).item() > 0


def test_the_module_does_not_read_the_teacher() -> None:
    z, v, y = logits_and_labels(9)
    options = config.TFKDReg(temperature=2.0, label_prob=0.9, multiplier=3.0)
    loss = build_loss(options, student=Endpoint(), teacher=Endpoint(), data_spec=DataSpec(10, 3, 8))
    batch = Batch(torch.zeros(6, 3, 8, 8), y, torch.arange(6))
    value = loss(Output(z), Output(v), batch, lambda x: x)
    assert value == loss(Output(z), Output(-v), batch, lambda x: x)
    truth = formula(z.numpy(), y.tolist(), temperature=2.0, label_prob=0.9, multiplier=3.0)
    assert value.item() == pytest.approx(truth, rel=1e-10)
