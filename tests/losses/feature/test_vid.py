"""Variational information distillation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kdschemes.config.losses import feature as config
from kdschemes.errors import UserError
from kdschemes.losses.feature.vid import VID, vid, vid_raw_variance
from kdschemes.losses.stages import match_size
from tests.losses.cases import Flags, Inputs, MapCase, Parameters, Reference
from tests.losses.formulas import Array, to_smaller
from tests.losses.stubs import (
    BIG,
    SMALL,
    build,
    output,
    value_of,
)


def formula(student: Array, teacher: Array, *, raw_variance: Array, eps: float) -> float:
    total = 0.0
    student, teacher = to_smaller(student, teacher)
    for index in np.ndindex(*student.shape):
        raw = float(raw_variance[index[1]])
        variance = max(raw, 0.0) + math.log1p(math.exp(-abs(raw))) + eps
        total += 0.5 * ((student[index] - teacher[index]) ** 2 / variance + math.log(variance))
    return float(total / student.size)


RAW = torch.tensor([-3.0, 0.0, 0.5, 4.99, 30.0, 2.0], dtype=torch.float64)
CASES = {
    "vid": MapCase(
        lambda s, t: vid(s, t, raw_variance=RAW.to(torch.promote_types(s.dtype, torch.float32)), eps=1e-3),
        lambda s, t: formula(s, t, raw_variance=RAW.numpy(), eps=1e-3),
        channel_order_free=False,
        zero=False,
    )
}
OPTIONS = [config.VID(variance=2.0, eps=0.5)]
FLAGS = Flags(vectors=True)


def variational(x: Inputs, p: Parameters) -> Tensor:
    """The reference keeps its first variances in float32."""
    student, teacher = match_size(x["s"], x["t"])
    mean = functional.conv2d(student, x["W1"])
    for weight in ("W2", "W3"):
        mean = functional.conv2d(mean.relu(), x[weight])
    raw = vid_raw_variance(p["v"], mean.shape[1], eps=p["eps"])
    return vid(mean, teacher, raw_variance=raw.to(mean.dtype), eps=p["eps"])


REFERENCES: dict[str, Reference] = {"VID.RepDistiller": variational}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("raw", [-1e4, -100.0, -5.0, 0.0, 20.0, 89.0, 100.0, 1e4])
def test_any_variance(raw: float, dtype: torch.dtype) -> None:
    s, t = torch.full((2, 1, 3, 3), 1.5, dtype=dtype), torch.zeros(2, 1, 3, 3, dtype=dtype)
    rho = torch.tensor([raw], dtype=dtype, requires_grad=True)
    value = vid(s.requires_grad_(), t, raw_variance=rho, eps=1e-5)
    expected = formula(s.detach().numpy(), t.numpy(), raw_variance=rho.detach().numpy(), eps=1e-5)
    assert value.item() == pytest.approx(expected, rel=1e-5 if dtype == torch.float32 else 1e-12)
    gradients = torch.autograd.grad(value, (s, rho))
    assert all(g.isfinite().all() for g in gradients)
    if abs(raw) < 50:
        wanted = torch.nn.functional.softplus(rho.detach().double()).item() + 1e-5
        slope = 0.5 * (1 / wanted - 2.25 / wanted**2) / (1 + math.exp(-raw))
        assert gradients[1].item() == pytest.approx(slope, rel=1e-4)


def test_the_best_variance_is_the_mean_squared_error() -> None:
    generator = torch.Generator().manual_seed(0)
    s, t = (torch.randn(8, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    variance = (s - t).square().mean((0, 2, 3))
    raw = (variance - 1e-5).expm1().log().requires_grad_()
    value = vid(s, t, raw_variance=raw)
    (gradient,) = torch.autograd.grad(value, raw)
    assert gradient.abs().max() < 1e-12
    assert value.item() == pytest.approx(0.5 * (1 + variance.log().mean().item()))


@pytest.mark.parametrize("variance", [1e-3, 0.5, 5.0, 1e3])
def test_the_raw_variance_gives_the_wanted_variance(variance: float) -> None:
    raw = vid_raw_variance(variance, 3, eps=1e-4).double()
    torch.testing.assert_close(torch.logaddexp(raw, 0 * raw) + 1e-4, torch.full_like(raw, variance), rtol=1e-5, atol=0)
    with pytest.raises(AssertionError, match="variance"):
        vid_raw_variance(1e-4, 3, eps=1e-4)


def test_the_module_starts_from_its_variance_and_trains_it() -> None:
    loss = build(config.VID(variance=2.0, eps=0.5))
    assert isinstance(loss, VID)
    assert [len(raw) for raw in loss.raw_variances] == [8, 6, 12]
    s, t = output(SMALL, 10), output(BIG, 11)
    expected = torch.zeros(())
    for (a, b), regressor, raw in zip(loss.pairs, loss.regressors, loss.raw_variances, strict=True):
        torch.testing.assert_close(nn.functional.softplus(raw) + 0.5, torch.full_like(raw, 2.0))
        ours, theirs = match_size(s.features[a], t.features[b])
        expected = expected + vid(regressor(ours), theirs, raw_variance=raw, eps=0.5)
    torch.testing.assert_close(value_of(loss, s, t), expected)
    with pytest.raises(UserError, match=r"vid .*eps=0\.5.*0\.5"):
        build(config.VID(variance=0.5, eps=0.5))
    vectors = {"v": (8,)}
    assert value_of(build(config.VID(), vectors, vectors), output(vectors, 0), output(vectors, 1)).isfinite()
