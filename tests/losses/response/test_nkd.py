"""Normalized distillation of the label's probability and of the other classes."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from kdschemes.config.losses import response as config
from kdschemes.losses.response.nkd import nkd
from tests.losses.cases import LogitCase, Reference
from tests.losses.formulas import Array, log_softmax, softmax, without
from tests.losses.inputs import gradient, logits_and_labels


def formula(student: Array, teacher: Array, labels: list[int], *, temperature: float, gamma: float) -> float:
    total = 0.0
    for z, v, y in zip(student, teacher, labels, strict=True):
        total -= softmax(v)[y] * log_softmax(z)[y]
        others = softmax(without(v, y) / temperature), log_softmax(without(z, y) / temperature)
        total -= gamma * temperature**2 * math.fsum(p * q for p, q in zip(*others, strict=True))
    return float(total / len(student))


CASES = {"nkd": LogitCase(partial(nkd, temperature=2.0), teacher_differentiable=False, zero=False)}
OPTIONS = [config.NKD(gamma=0.5, temperature=3.0)]
REFERENCES: dict[str, Reference] = {
    "NKD.cls_KD": lambda x, p: nkd(x["s"], x["t"], x["y"], temperature=float(p["T"]), gamma=p["gamma"])
}


SIZES = pytest.mark.parametrize(("n", "c"), [(6, 10), (1, 4), (5, 2), (2, 100)])


@SIZES
@pytest.mark.parametrize("temperature", [1.0, 4.0, 100.0])
@pytest.mark.parametrize("scale", [0.1, 1.0, 50.0])
def test_value_equals_the_formula(n: int, c: int, temperature: float, scale: float) -> None:
    z, v, y = logits_and_labels(4, n, c, scale)
    value = nkd(z, v, y, temperature=temperature, gamma=0.7)
    truth = formula(z.numpy(), v.numpy(), y.tolist(), temperature=temperature, gamma=0.7)
    assert value.item() == pytest.approx(truth, rel=1e-10)


def test_gradient_of_each_part() -> None:
    z, v, y = logits_and_labels(6)
    z.requires_grad_(), v.requires_grad_()
    one_hot, share = torch.eye(10)[y], torch.softmax(v, 1).gather(1, y[:, None]).detach()
    value = nkd(z, v, y, temperature=2.0, gamma=0.0)
    torch.testing.assert_close(gradient(value, z), share * (torch.softmax(z, 1) - one_hot) / 6)
    _, teacher = torch.autograd.grad(nkd(z, v, y, temperature=2.0, gamma=0.0), (z, v))
    assert not teacher.any()
    _, teacher = torch.autograd.grad(nkd(z, v, y, temperature=2.0), (z, v))
    assert teacher.any()
    assert not teacher.gather(1, y[:, None]).any()


def test_two_classes_leave_only_the_first_part() -> None:
    z, v, y = logits_and_labels(7, c=2)
    assert nkd(z, v, y, gamma=5.0) == nkd(z, v, y, gamma=0.0)


def test_value_of_equal_logits() -> None:
    z, y = torch.zeros(3, 5), torch.tensor([0, 1, 4])
    assert nkd(z, z, y).item() == pytest.approx(math.log(5) / 5 + 1.5 * math.log(4))


def test_published_with_a_full_hard_term() -> None:
    options = config.NKD()
    assert (options.ce_weight, options.schedule, options.ramp_epochs) == (1.0, "constant", 20.0)
