"""Distillation of softened outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdschemes.config.losses import response as config
from kdschemes.losses.response.kd import kd
from kdschemes.losses.response.logit_mse import logit_mse
from tests.losses import formulas
from tests.losses.cases import Inputs, LogitCase, Parameters, Reference, with_hard_term
from tests.losses.formulas import Array, softmax
from tests.losses.inputs import gradient, logits, logits_and_labels


def formula_gradient(student: Array, teacher: Array, *, temperature: float) -> Array:
    """Gradient of `formulas.kd` for the student: T (softmax(z / T) - softmax(v / T)) / N."""
    rows = [softmax(z / temperature) - softmax(v / temperature) for z, v in zip(student, teacher, strict=True)]
    return temperature * np.stack(rows) / len(student)


CASES = {"kd": LogitCase(lambda z, v, y: kd(z, v, temperature=2.0, scale=False, reduction="mean"))}
OPTIONS = [config.KD(temperature=3.0), config.KD(standardize=True), config.KD(scale=False, reduction="mean")]


def soft(x: Inputs, p: Parameters, **conventions: Any) -> Tensor:
    return kd(x["s"], x["t"], temperature=float(p["T"]), **conventions)


REFERENCES: dict[str, Reference] = {
    "KD.RepDistiller": soft,
    "KD.mdistiller": soft,
    "KD.mmrazor": soft,
    "KD.sota": soft,
    "KD.attention-transfer": lambda x, p: with_hard_term(p["alpha"], soft(x, p), x),
    "KD.torchdistill": lambda x, p: with_hard_term(1 - p["alpha"], soft(x, p), x),
    "KD.torchdistill_alpha0": lambda x, p: soft(x, p, scale=False),
    "KD.haitongli": lambda x, p: with_hard_term(p["alpha"], soft(x, p, reduction="mean"), x),
    "KD.Teacher-free": lambda x, p: with_hard_term(p["alpha"], soft(x, p, reduction="mean"), x),
    "TF-KD_self": lambda x, p: with_hard_term(p["alpha"], p["m"] * soft(x, p, reduction="mean"), x),
}


def largest_relative_error(x: Tensor, truth: np.ndarray) -> float:
    return float(np.abs(x.double().detach().numpy() - truth).max() / np.abs(truth).max())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0, 50.0])
def test_value_and_gradient_equal_the_formula(temperature: float, scale: float) -> None:
    z, v = logits(0, scale=scale).requires_grad_(), logits(1, scale=scale)
    value = kd(z, v, temperature=temperature)
    assert value.item() == pytest.approx(formulas.kd(z.detach().numpy(), v.numpy(), temperature=temperature), rel=1e-10)
    truth = formula_gradient(z.detach().numpy(), v.numpy(), temperature=temperature)
    assert largest_relative_error(gradient(value, z), truth) < 1e-10


def test_hintons_gradient_identity() -> None:
    z, v, temperature = logits(2, n=1).requires_grad_(), logits(3, n=1), 3.0
    per_sample = kd(z, v, temperature=temperature) / temperature**2
    expected = (torch.softmax(z / temperature, 1) - torch.softmax(v / temperature, 1)) / temperature
    torch.testing.assert_close(gradient(per_sample, z), expected, rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("temperature", "scale"), [(1000.0, 1.0), (1000.0, 1e-4), (4.0, 1e-4), (1.0, 1e-3), (4.0, 3.0), (1.0, 30.0)]
)
def test_no_digits_are_lost(temperature: float, scale: float, dtype: torch.dtype) -> None:
    z, v = logits(4, c=100, scale=scale).to(dtype).requires_grad_(), logits(5, c=100, scale=scale).to(dtype)
    arrays = z.detach().double().numpy(), v.double().numpy()
    value = kd(z, v, temperature=temperature)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(formulas.kd(*arrays, temperature=temperature), rel=2e-5)
    truth = formula_gradient(*arrays, temperature=temperature)
    g = gradient(value, z)
    assert g.dtype == dtype
    if dtype == torch.float32:
        assert largest_relative_error(g, truth) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 4.0, 0.1])
def test_extreme_logits(temperature: float, dtype: torch.dtype) -> None:
    z = torch.tensor([[1e4, 0.0, 0.0], [0.0, 1e4, -1e4], [1e4, 1e4, 9e3], [0.0, 1000.0, 0.0], [3.0, 1e4, 0.0]])
    v = torch.tensor([[0.0, 1e4, 0.0], [0.0, 1e4, 1e3], [1e4, 1e4, 9e3], [1000.0, 0.0, 0.0], [2.0, 1e4, 1.0]])
    z, v = z.to(dtype).requires_grad_(), v.to(dtype).requires_grad_()
    value = kd(z, v, temperature=temperature)
    arrays = z.detach().double().numpy(), v.detach().double().numpy()
    assert value.item() == pytest.approx(formulas.kd(*arrays, temperature=temperature), rel=1e-6)
    gz, gv = torch.autograd.grad(value, (z, v))
    assert gz.isfinite().all()
    assert gv.isfinite().all()
    truth = formula_gradient(*arrays, temperature=temperature)
    assert largest_relative_error(gz, truth) < (1e-2 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("gap", [49.0, 51.0, 80.0, 120.0, 1000.0])
def test_both_forms_agree_where_one_replaces_the_other(gap: float) -> None:
    v = logits(8, n=2).float()
    z = (v + torch.linspace(-gap, gap, 10)).requires_grad_()
    arrays = z.detach().double().numpy(), v.double().numpy()
    value = kd(z, v, temperature=1.0)
    assert value.item() == pytest.approx(formulas.kd(*arrays, temperature=1.0), rel=1e-5)
    assert largest_relative_error(gradient(value, z), formula_gradient(*arrays, temperature=1.0)) < 1e-5


@pytest.mark.parametrize("offset", [0.0, 2.0])
def test_tends_to_logit_mse_as_one_over_temperature(offset: float) -> None:
    z, v = logits(9).requires_grad_(), logits(10)
    z_centered, v_centered = z - z.mean(1, keepdim=True), v - v.mean(1, keepdim=True)
    limit = logit_mse(z + offset, v)
    limit_gradient = gradient(logit_mse(z, v), z)
    torch.testing.assert_close(limit_gradient, (z_centered - v_centered).detach() / z.numel())
    errors, gradient_errors = [], []
    for temperature in (10.0, 100.0, 1000.0):
        value = kd(z + offset, v, temperature=temperature)
        errors.append(abs(value / limit - 1).item())
        gradient_errors.append(((gradient(value, z) - limit_gradient).norm() / limit_gradient.norm()).item())
    for e in (errors, gradient_errors):
        assert 0 < e[0] < 0.2
        assert e[1] / e[0] == pytest.approx(0.1, rel=0.3)
        assert e[2] / e[1] == pytest.approx(0.1, rel=0.3)


def test_without_centering_the_high_temperature_limit_is_wrong() -> None:
    z, v = (logits(9) + 2.0).requires_grad_(), logits(10)
    uncentered = (z - v).detach() / z.numel()
    for temperature in (10.0, 100.0, 1000.0):
        g = gradient(kd(z, v, temperature=temperature), z)
        assert (g - uncentered).norm() / g.norm() > 1.0


def test_is_a_divergence() -> None:
    z, v = logits(11), logits(12)
    order, shift = torch.randperm(6), logits(13, c=1)
    classes = torch.randperm(10)
    value = kd(z, v, temperature=3.0)
    assert value > 0
    assert kd(v, v, temperature=3.0) == 0
    assert kd(v + 100.0, v, temperature=3.0).item() == pytest.approx(0.0, abs=1e-25)
    torch.testing.assert_close(kd(z + shift, v - shift, temperature=3.0), value)
    torch.testing.assert_close(kd(z[order], v[order], temperature=3.0), value)
    torch.testing.assert_close(kd(z[:, classes], v[:, classes], temperature=3.0), value)
    torch.testing.assert_close(kd(z * 5, v * 5, temperature=15.0), value * 25)


def test_zero_with_zero_gradient_at_equality() -> None:
    z = logits(14).float().requires_grad_()
    value = kd(z, z.detach().clone(), temperature=4.0)
    assert value.item() == 0.0
    assert gradient(value, z).abs().max() == 0.0


def test_gradients_of_both_sides() -> None:
    z, v = logits(15, n=3, c=4).requires_grad_(), logits(16, n=3, c=4).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: kd(a, b, temperature=0.7), (z, v))
    assert torch.autograd.gradcheck(lambda a, b: kd(a * 60, b * 60, temperature=1.0), (z, v), atol=1e-4)
    assert torch.autograd.gradgradcheck(lambda a, b: kd(a, b, temperature=0.7), (z, v))


def test_batch_of_one_and_layout() -> None:
    z, v = logits(17, n=8), logits(18, n=8)
    rows = [kd(z[i : i + 1], v[i : i + 1], temperature=2.0) for i in range(8)]
    torch.testing.assert_close(kd(z, v, temperature=2.0), torch.stack(rows).mean())
    torch.testing.assert_close(kd(z.T.contiguous().T, v, temperature=2.0), kd(z, v, temperature=2.0))


def test_conventions() -> None:
    z, v, _ = logits_and_labels(10)
    value = kd(z, v, temperature=3.0)
    assert value.item() == pytest.approx(formulas.kd(z.numpy(), v.numpy(), temperature=3.0), rel=1e-12)
    torch.testing.assert_close(kd(z, v, temperature=3.0, scale=False) * 9.0, value)
    torch.testing.assert_close(kd(z, v, temperature=3.0, reduction="mean") * 10.0, value)
    p, log_q = torch.softmax(v / 3.0, 1), torch.log_softmax(z / 3.0, 1)
    with pytest.warns(UserWarning, match="reduction"):
        torch_default = torch.nn.functional.kl_div(log_q, p)
    torch.testing.assert_close(kd(z, v, temperature=3.0, scale=False, reduction="mean"), torch_default)


def test_classes_that_the_teacher_excludes_contribute_nothing() -> None:
    """Logits of -inf: 0 log 0 = 0, and the gradient is (q - p) T / n as elsewhere."""
    z, v = logits(0).requires_grad_(), logits(1)
    v[:3, 2:5] = -torch.inf
    value = kd(z, v, temperature=4.0)
    p, q = torch.softmax(v / 4, 1), torch.softmax(z / 4, 1)
    expected = 16 * torch.special.xlogy(p, p / q).sum(1).mean()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient(value, z), 4 * (q - p).detach() / len(z))
