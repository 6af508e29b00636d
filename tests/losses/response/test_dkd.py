"""Decoupled distillation: of the label's share, and of the distribution over the other classes."""

from __future__ import annotations

from decimal import Decimal, localcontext
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from kdschemes.config.losses import response as config
from kdschemes.losses.response.dkd import dkd, split_label
from kdschemes.losses.response.kd import kd
from tests.losses import formulas
from tests.losses.cases import Inputs, LogitCase, Parameters, Reference
from tests.losses.formulas import Array, softmax, without
from tests.losses.inputs import gradient, logits_and_labels


def target_divergence(student: Array, teacher: Array, labels: list[int], *, temperature: float) -> list[float]:
    """KL of (p_y, 1 - p_y) by sample, in decimal arithmetic of as many digits as the gaps between logits take."""
    found = []
    digits = 100 + int(0.5 * max(np.ptp(student), np.ptp(teacher)) / temperature)
    with localcontext() as context:
        context.prec = digits
        for z, v, y in zip(student.tolist(), teacher.tolist(), labels, strict=True):
            b = []
            for row in (z, v):
                mass = [(Decimal(x) / Decimal(temperature)).exp() for x in row]
                b.append((mass[y] / sum(mass), (sum(mass) - mass[y]) / sum(mass)))
            context.prec = 60
            found.append(float(sum(p * (p.ln() - q.ln()) for q, p in zip(*b, strict=True))))
            context.prec = digits
    return found


def formula(
    student: Array, teacher: Array, labels: list[int], *, temperature: float, alpha: float = 1.0, beta: float = 8.0
) -> float:
    target = target_divergence(student, teacher, labels, temperature=temperature)
    total = 0.0
    for z, v, y, t in zip(student, teacher, labels, target, strict=True):
        others = formulas.kd(without(z, y)[None], without(v, y)[None], temperature=temperature)
        total += alpha * temperature**2 * t + beta * others
    return total / len(student)


def formula_gradient(
    student: Array, teacher: Array, labels: list[int], *, temperature: float, alpha: float = 1.0, beta: float = 8.0
) -> Array:
    """T/N (alpha (b^s - b^t) [1, -p^] + beta (p^s - p^t)), p^ over the classes that are not the label."""
    rows = []
    for z, v, y in zip(student / temperature, teacher / temperature, labels, strict=True):
        hat_s, hat_t = softmax(without(z, y)), softmax(without(v, y))
        gap = without(softmax(v), y).sum() - without(softmax(z), y).sum()
        row = np.insert(-alpha * gap * hat_s + beta * (hat_s - hat_t), y, alpha * gap)
        rows.append(temperature * row)
    return np.stack(rows) / len(student)


CASES = {"dkd": LogitCase(partial(dkd, temperature=2.0))}
OPTIONS = [config.DKD(alpha=2.0, beta=3.0, temperature=1.5)]


def decoupled(x: Inputs, p: Parameters) -> Tensor:
    return dkd(x["s"], x["t"], x["y"], temperature=float(p["T"]), alpha=p["alpha"], beta=p["beta"])


REFERENCES: dict[str, Reference] = {"DKD.mdistiller": decoupled, "DKD.mmrazor": decoupled}


SIZES = pytest.mark.parametrize(("n", "c"), [(6, 10), (1, 4), (5, 2), (2, 100)])


@SIZES
@pytest.mark.parametrize("temperature", [1.0, 4.0, 100.0])
@pytest.mark.parametrize("scale", [0.1, 1.0, 50.0])
def test_value_and_gradient_equal_the_formula(n: int, c: int, temperature: float, scale: float) -> None:
    z, v, y = logits_and_labels(0, n, c, scale)
    z.requires_grad_()
    value = dkd(z, v, y, temperature=temperature, alpha=2.0, beta=3.0)
    arrays = z.detach().numpy(), v.numpy(), y.tolist()
    truth = formula(*arrays, temperature=temperature, alpha=2.0, beta=3.0)
    assert value.item() == pytest.approx(truth, rel=1e-10)
    slope = formula_gradient(*arrays, temperature=temperature, alpha=2.0, beta=3.0)
    np.testing.assert_allclose(gradient(value, z), slope, rtol=0, atol=1e-10 * np.abs(slope).max())


EXTREMES = {
    "wrong": ([0.0, 104.0, 0.0], [104.0, 0.0, 0.0]),
    "far wrong": ([0.0, 1000.0, 0.0], [1000.0, 0.0, 0.0]),
    "sure and right": ([104.0, 0.0, 1.0], [3.0, 1.0, 2.0]),
    "surer and right": ([1000.0, 0.0, 1.0], [3.0, 1.0, 2.0]),
    "sure teacher": ([3.0, 1.0, 2.0], [1000.0, 0.0, 1.0]),
    "both sure": ([1000.0, 0.0, 1.0], [900.0, 1.0, 0.0]),
    "both sure and nearly equal": ([30.0, 0.0, 1.0], [30.5, 0.2, 0.9]),
    "others far apart": ([0.0, 1000.0, 0.0], [0.0, 0.0, 1000.0]),
    "half precision": ([0.0, 18.0, 0.0], [18.0, 0.0, 0.0]),
}


@pytest.mark.parametrize("case", EXTREMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_extreme_logits(case: str, dtype: torch.dtype) -> None:
    z, v = (torch.tensor([row], dtype=dtype, requires_grad=True) for row in EXTREMES[case])
    for alpha, beta in ((1.0, 8.0), (1.0, 0.0), (0.0, 8.0)):
        value = dkd(z, v, torch.tensor([0]), temperature=1.0, alpha=alpha, beta=beta)
        arrays = z.detach().double().numpy(), v.detach().double().numpy(), [0]
        truth = formula(*arrays, temperature=1.0, alpha=alpha, beta=beta)
        assert value.item() == pytest.approx(truth, rel=1e-11 if dtype == torch.float64 else 1e-5)
        gz, gv = torch.autograd.grad(value, (z, v))
        assert gv.isfinite().all()
        slope = formula_gradient(*arrays, temperature=1.0, alpha=alpha, beta=beta)
        tolerance = 1e-6 if dtype in (torch.float32, torch.float64) else 1e-2
        np.testing.assert_allclose(gz.double(), slope, rtol=tolerance, atol=tolerance * np.abs(slope).max() + 1e-7)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 1000.0])
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_kd_is_the_sum_of_both_parts(temperature: float, scale: float) -> None:
    z, v, y = logits_and_labels(1, scale=scale)
    share = torch.softmax(v / temperature, dim=1).gather(1, y[:, None])[:, 0]
    parts = []
    for i in range(len(z)):
        row = z[i : i + 1], v[i : i + 1], y[i : i + 1]
        target, others = (dkd(*row, temperature=temperature, alpha=a, beta=b) for a, b in ((1.0, 0.0), (0.0, 1.0)))
        parts.append(target + (1 - share[i]) * others)
    torch.testing.assert_close(torch.stack(parts).mean(), kd(z, v, temperature=temperature), rtol=1e-9, atol=0)


def test_is_a_divergence() -> None:
    z, v, y = logits_and_labels(2)
    for x in (z, z.float(), 20 * z.float(), 0.01 * z.float()):
        value = dkd(x, x.clone(), y, temperature=4.0)
        assert value.item() == 0.0
    assert dkd(z, v, y, temperature=4.0) > 0
    close = dkd(v + 1e-4 * z, v, y, temperature=4.0)
    in_single = dkd((v + 1e-4 * z).float(), v.float(), y, temperature=4.0)
    assert 0 < close < 1e-6
    assert in_single.item() == pytest.approx(close.item(), rel=5e-2)
    torch.testing.assert_close(dkd(3 * z, 3 * v, y, temperature=12.0), 9 * dkd(z, v, y, temperature=4.0))


def test_no_digits_are_lost_at_a_high_temperature() -> None:
    z, v, y = (x.float() if x.is_floating_point() else x for x in logits_and_labels(3, c=100))
    value = dkd(z, v, y, temperature=1000.0)
    truth = formula(z.double().numpy(), v.double().numpy(), y.tolist(), temperature=1000.0)
    assert value.item() == pytest.approx(truth, rel=1e-4)


def test_split_label() -> None:
    logits = torch.arange(12.0).reshape(3, 4)
    label, others = split_label(logits, torch.tensor([0, 3, 1]))
    assert label.tolist() == [0.0, 7.0, 9.0]
    assert others.tolist() == [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [8.0, 10.0, 11.0]]


def test_zero_where_all_logits_are_equal() -> None:
    z, y = torch.zeros(3, 5), torch.tensor([0, 1, 4])
    assert dkd(z, z, y, temperature=4.0).item() == 0.0


def test_published_with_a_full_hard_term() -> None:
    assert (config.DKD().ce_weight, config.DKD().schedule, config.DKD().ramp_epochs) == (1.0, "linear", 20.0)
