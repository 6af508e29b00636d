"""Refined logits: the teacher's confidence, and the classes that it ranks below the label."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdschemes.config.losses import response as config
from kdschemes.losses.response.rld import rld
from tests.losses.cases import LogitCase, Reference
from tests.losses.formulas import Array, divergence, log_softmax, without
from tests.losses.inputs import gradient, logits_and_labels


def formula(
    student: Array,
    teacher: Array,
    labels: list[int],
    *,
    temperature: float,
    confidence: float,
    alpha: float,
    beta: float,
) -> float:
    total = 0.0
    for z, v, y in zip(student, teacher, labels, strict=True):
        top = int(v.argmax())
        of_teacher, of_student = (
            np.array([log_softmax(x / confidence)[k], _log_of_rest(x / confidence, k)]) for x, k in ((v, top), (z, y))
        )
        total += alpha * confidence**2 * divergence(of_teacher, of_student)
        below = [c for c in range(len(v)) if v[c] < v[y]]
        if below:
            rest = divergence(log_softmax(v[below] / temperature), log_softmax(z[below] / temperature))
            total += beta * temperature**2 * rest
    return total / len(student)


def _log_of_rest(x: Array, label: int) -> float:
    """log (1 - softmax(x)[label])."""
    others = without(x, label)
    return float(
        others.max() + math.log(np.exp(others - others.max()).sum()) - x.max() - math.log(np.exp(x - x.max()).sum())
    )


CASES = {"rld": LogitCase(lambda z, v, y: rld(z, v, y, temperature=2.0), zero=False)}
OPTIONS = [config.RLD(temperature=2.0, confidence_temperature=3.0, alpha=0.5, beta=2.0), config.RLD(standardize=True)]
REFERENCES: dict[str, Reference] = {
    "RLD": lambda x, p: rld(
        x["s"],
        x["t"],
        x["y"],
        temperature=float(p["T"]),
        confidence_temperature=p["alpha_T"],
        alpha=p["alpha"],
        beta=p["beta"],
    )
}


@pytest.mark.parametrize(("n", "c"), [(6, 10), (1, 4), (5, 2), (2, 100)])
@pytest.mark.parametrize(("temperature", "confidence"), [(1.0, 1.0), (4.0, 1.0), (100.0, 3.0)])
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_value_equals_the_formula(n: int, c: int, temperature: float, confidence: float, scale: float) -> None:
    z, v, y = logits_and_labels(4, n, c, scale)
    value = rld(z, v, y, temperature=temperature, confidence_temperature=confidence, alpha=0.7, beta=1.3)
    truth = formula(
        z.numpy(), v.numpy(), y.tolist(), temperature=temperature, confidence=confidence, alpha=0.7, beta=1.3
    )
    assert value.item() == pytest.approx(truth, rel=1e-8)


def test_zero_for_equal_logits_of_a_teacher_that_is_right() -> None:
    v = torch.tensor([[3.0, 1.0, 0.0], [-1.0, 2.0, 0.5]], dtype=torch.float64)
    z = v.clone().requires_grad_()
    value = rld(z, v, v.argmax(1), temperature=4.0)
    assert value.item() == pytest.approx(0.0, abs=1e-15)
    assert gradient(value, z).abs().max() < 1e-12
    assert rld(v, v, v.argmin(1), temperature=4.0) > 0.1


def test_classes_that_the_teacher_prefers_to_the_label_are_left_out() -> None:
    z, v, y = logits_and_labels(6)
    z.requires_grad_()
    slope = gradient(rld(z, v, y, temperature=4.0, alpha=0.0), z)
    left_out = v >= v.gather(1, y[:, None])
    assert (slope[left_out] == 0).all()
    assert slope[~left_out].any()
    one_hot = torch.eye(10, dtype=torch.bool)[y]
    confidence = gradient(rld(z, v, y, temperature=4.0, beta=0.0), z)
    assert torch.equal(confidence.sign()[one_hot], -confidence.sum(1).sub(confidence[one_hot]).sign())


def test_a_label_that_the_teacher_ranks_last_leaves_the_confidence() -> None:
    z, v, _ = logits_and_labels(7)
    y = v.argmin(1)
    z.requires_grad_()
    value = rld(z, v, y, temperature=4.0)
    assert value == rld(z, v, y, temperature=4.0, beta=0.0)
    assert gradient(value, z).isfinite().all()


def test_published_with_a_full_hard_term_and_a_ramp() -> None:
    options = config.RLD()
    assert (options.ce_weight, options.schedule, options.ramp_epochs) == (1.0, "linear", 20.0)
