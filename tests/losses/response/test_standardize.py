"""Standardized logits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from kdschemes.config.losses import response as config
from kdschemes.core.loss import Endpoint
from kdschemes.core.types import DataSpec
from kdschemes.losses.build import build_loss
from kdschemes.losses.response.dkd import dkd
from kdschemes.losses.response.kd import kd
from kdschemes.losses.response.standardize import standardize
from tests.losses import formulas
from tests.losses.cases import Inputs, LogitCase, Parameters, Reference, with_hard_term
from tests.losses.formulas import Array
from tests.losses.inputs import logits
from tests.losses.response.test_dkd import formula as formula_of_dkd


def formula(logits: Array) -> Array:
    rows = []
    for row in logits:
        mean = math.fsum(row) / len(row)
        deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in row) / (len(row) - 1))
        rows.append([(x - mean) / (deviation + 1e-7) for x in row])
    return np.array(rows)


CASES = {"kd of standardized logits": LogitCase(lambda z, v, y: kd(standardize(z), standardize(v), temperature=2.0))}


def standardized(x: Inputs) -> Inputs:
    return {**x, "s": standardize(x["s"]), "t": standardize(x["t"])}


def soft(x: Inputs, p: Parameters) -> Tensor:
    return kd(x["s"], x["t"], temperature=float(p["T"]))


def decoupled(x: Inputs, p: Parameters) -> Tensor:
    return dkd(x["s"], x["t"], x["y"], temperature=float(p["T"]), alpha=p["alpha"], beta=p["beta"])


REFERENCES: dict[str, Reference] = {
    "LSKD_KD": lambda x, p: soft(standardized(x), p),
    "LSKD_DKD": lambda x, p: decoupled(standardized(x), p),
    "LSKD.torchdistill": lambda x, p: with_hard_term(1 - p["alpha"], soft(standardized(x), p), x),
}


@pytest.mark.parametrize(("n", "c"), [(1, 3), (6, 10), (2, 1000)])
@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1.0, 50.0, 1e6])
def test_value_equals_the_formula(n: int, c: int, scale: float) -> None:
    z = logits(0, n, c, scale)
    np.testing.assert_allclose(standardize(z).numpy(), formula(z.numpy()), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 20.0])
def test_distillation_of_standardized_logits_equals_the_formula(temperature: float) -> None:
    z, v, labels = logits(1, scale=5.0), logits(2), [0, 9, 3, 3, 1, 5]
    arrays = formula(z.numpy()), formula(v.numpy())
    value = kd(standardize(z), standardize(v), temperature=temperature)
    assert value.item() == pytest.approx(formulas.kd(*arrays, temperature=temperature), rel=1e-10)
    value = dkd(standardize(z), standardize(v), torch.tensor(labels), temperature=temperature)
    assert value.item() == pytest.approx(formula_of_dkd(*arrays, labels, temperature=temperature), rel=1e-9)


def test_mean_0_and_std_1_whatever_the_shift_and_scale() -> None:
    z = logits(3)
    standard = standardize(z)
    torch.testing.assert_close(standard.mean(dim=1), torch.zeros(6, dtype=torch.float64))
    torch.testing.assert_close(standard.std(dim=1), torch.ones(6, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(standardize(z + logits(4, c=1)), standard)
    for factor in (0.5, 3.0, 1e4):
        torch.testing.assert_close(standardize(factor * z), standard, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(standardize(-z), -standard)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("level", [0.0, 0.1, -3.3, 1000.0])
@pytest.mark.parametrize("n", [1, 3])
def test_equal_logits_give_0_and_a_gradient_of_0(dtype: torch.dtype, level: float, n: int) -> None:
    z = torch.full((n, 7), level, dtype=dtype, requires_grad=True)
    standard = standardize(z)
    assert not standard.any()
    target = standardize(logits(5, n, 7).to(dtype))
    value = kd(standard, target, temperature=2.0)
    (gradient,) = torch.autograd.grad(value, z)
    assert value.isfinite()
    assert not gradient.any()


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e30])
def test_no_scale_overflows(scale: float) -> None:
    z = logits(6, scale=scale).float().requires_grad_()
    value = standardize(z)
    np.testing.assert_allclose(value.detach(), formula(z.detach().double().numpy()), rtol=1e-4)
    (gradient,) = torch.autograd.grad(value.square().sum(), z)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("c", "scale"), [(10, 1.0), (100, 3.0), (1000, 50.0)])
def test_half_precision(dtype: torch.dtype, c: int, scale: float) -> None:
    z, v = logits(7, c=c, scale=scale).to(dtype).requires_grad_(), logits(8, c=c, scale=scale).to(dtype)
    value = kd(standardize(z), standardize(v), temperature=2.0)
    (gradient,) = torch.autograd.grad(value, z)
    exact = z.detach().double().requires_grad_()
    truth = kd(standardize(exact), standardize(v.double()), temperature=2.0)
    (slope,) = torch.autograd.grad(truth, exact)
    assert value.item() == pytest.approx(truth.item(), rel=1e-4)
    assert (gradient.double() - slope).norm() / slope.norm() < 1e-2


def test_gradients() -> None:
    assert torch.autograd.gradcheck(standardize, (logits(9, n=3, c=4).requires_grad_(),))
    assert torch.autograd.gradgradcheck(standardize, (logits(10, n=2, c=3).requires_grad_(),))


@pytest.mark.parametrize(
    "options",
    [config.KD(standardize=True), config.DKD(standardize=True), config.DIST(standardize=True)],
    ids=lambda o: o.name,
)
def test_two_classes_warn_when_the_loss_is_built(options: config.KD) -> None:
    with pytest.warns(UserWarning, match="2 classes"):
        build_loss(options, student=Endpoint(), teacher=Endpoint(), data_spec=DataSpec(2, 3, 8))


def test_two_classes_teach_nothing() -> None:
    z, v = logits(11, c=2).requires_grad_(), logits(12, c=2)
    (gradient,) = torch.autograd.grad(kd(standardize(z), standardize(v), temperature=2.0), z)
    assert gradient.abs().max() < 1e-5
    torch.testing.assert_close(standardize(z).abs(), torch.full_like(z, 0.5**0.5), atol=1e-5, rtol=0)
