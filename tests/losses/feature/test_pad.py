"""Distillation weighted by a predicted uncertainty."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from kdschemes.config.losses import feature as config
from kdschemes.errors import UserError
from kdschemes.losses.feature.pad import pad
from tests.losses.cases import Flags, Reference
from tests.losses.formulas import Array
from tests.losses.inputs import gradients, normal
from tests.losses.stubs import (
    BIG,
    SMALL,
    build,
    output,
    value_of,
)


def formula(student: Array, teacher: Array, log_variance: Array, *, eps: float = 1e-6) -> float:
    terms = [
        (t - s) ** 2 / (eps + math.exp(v)) + v
        for s, t, v in zip(student.ravel(), teacher.ravel(), log_variance.ravel(), strict=True)
    ]
    return math.fsum(terms) / student.size


OPTIONS = [config.PAD(stages="all")]
FLAGS = Flags(vectors=True)
REFERENCES: dict[str, Reference] = {"PAD_L2.torchdistill": lambda x, p: pad(x["s"], x["t"], log_variance=x["v"])}


@pytest.mark.parametrize("scale", [0.1, 1.0, 20.0])
def test_value_equals_the_formula(scale: float) -> None:
    s, t, log_variance = normal(2, 4, 6, scale=scale), normal(3, 4, 6, scale=scale), normal(4, 4, 6)
    value = pad(s, t, log_variance=log_variance)
    assert value.item() == pytest.approx(formula(s.numpy(), t.numpy(), log_variance.numpy()), rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_any_log_variance(dtype: torch.dtype) -> None:
    s, t = normal(29, 4, 5).to(dtype).requires_grad_(), normal(30, 4, 5).to(dtype)
    gap = (s - t).detach().double()
    for v in (-1000.0, -50.0, -13.8, 0.0, 30.0, 88.0, 100.0, 1000.0):
        log_variance = torch.full((4, 5), v, dtype=dtype, requires_grad=True)
        value = pad(s, t, log_variance=log_variance)
        exact = log_variance.detach().double()
        truth = (gap.square() * torch.exp(-torch.logaddexp(exact, torch.tensor(1e-6).double().log())) + exact).mean()
        assert value.item() == pytest.approx(truth.item(), rel=2e-2 if dtype == torch.bfloat16 else 1e-5)
        assert all(g.isfinite().all() for g in gradients(value, s, log_variance))


def test_the_best_variance_is_the_squared_error() -> None:
    s, t = normal(31, 6, 4).requires_grad_(), normal(32, 6, 4)
    v = (s - t).detach().square().log().requires_grad_()
    value = pad(s, t, log_variance=v, eps=1e-12)
    (gradient,) = gradients(value, v)
    assert gradient.abs().max() < 1e-7
    assert torch.autograd.gradcheck(
        lambda a, b, c: pad(a, b, log_variance=c), (s, t.requires_grad_(), normal(33, 6, 4).requires_grad_())
    )
    assert pad(t, t, log_variance=torch.zeros_like(t)) == 0


def test_the_modules_parameters_without_a_projection() -> None:
    loss = build(config.PAD(stages="last"), teacher=SMALL)
    assert [tuple(p.shape) for p in loss.parameters()] == [(8, 8), (8,), (8,)]


def test_a_batch_of_one_does_not_reach_the_batch_norm() -> None:
    loss = build(config.PAD()).train()
    value = value_of(loss, output(SMALL, 4, n=1), output(BIG, 54, n=1))
    assert value.isfinite()
    (norm,) = (m for m in loss.modules() if isinstance(m, nn.BatchNorm1d))
    assert norm.num_batches_tracked == 0


@pytest.mark.parametrize(
    ("options", "student", "teacher", "message"),
    [
        (config.PAD(stages=["block9:layer1"]), SMALL, BIG, r"student stage 'block9'"),
    ],
)
def test_undefined_losses_are_refused_when_built(options: Any, student: Any, teacher: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build(options, student, teacher)
    assert "\n" not in str(error.value)
