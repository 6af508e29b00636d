"""Losses of maps before a ReLU, and of learned variances: their regions, their margins, their extremes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdschemes.losses.feature.ab import ab
from kdschemes.losses.feature.ofd import ofd, ofd_margin
from kdschemes.losses.feature.vid import vid, vid_raw_variance
from tests.losses import oracles_maps as oracles


def single(x: float) -> Tensor:
    return torch.full((1, 1, 1, 1), x, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(
    ("student", "teacher", "value", "slope"),
    [
        (0.25, 1.0, 0.75**2, -1.5),
        (1.0, 1.0, 0.0, 0.0),
        (3.0, 1e-9, 0.0, 0.0),
        (0.25, 0.0, 1.25**2, 2.5),
        (-1.0, -2.0, 0.0, 0.0),
        (-3.0, -2.0, 0.0, 0.0),
        (-3.0, 2.0, 16.0, -8.0),
    ],
)
def test_ab_by_region(student: float, teacher: float, value: float, slope: float) -> None:
    s = single(student)
    loss = ab(s, single(teacher), margin=1.0)
    (gradient,) = torch.autograd.grad(loss, s)
    assert (loss.item(), gradient.item()) == pytest.approx((value, slope))


def test_ab_asks_for_the_teachers_sign_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    s, t = (torch.randn(3, 4, 5, 5, generator=generator) for _ in range(2))
    value = ab(s, t)
    assert ab(s, 100 * t) == value
    assert ab(s, t.relu()) == value
    assert ab(t.sign(), t) == 0
    teacher = t.requires_grad_()
    ab(s.requires_grad_(), teacher).backward()
    assert teacher.grad is None


@pytest.mark.parametrize(
    ("student", "teacher", "value", "slope"),
    [
        (2.0, 3.0, 1.0, -2.0),
        (5.0, 3.0, 4.0, 4.0),
        (-4.0, 3.0, 49.0, -14.0),
        (0.5, -0.5, 1.0, 2.0),
        (-0.7, -0.5, 0.0, 0.0),
        (0.5, -9.0, 1.5**2, 3.0),
        (-2.0, -9.0, 0.0, 0.0),
        (-1.0, -9.0, 0.0, 0.0),
    ],
)
def test_ofd_by_region(student: float, teacher: float, value: float, slope: float) -> None:
    s, t = single(student), single(teacher)
    margin = torch.tensor([-1.0], dtype=torch.float64)
    loss = ofd(s, t, margin=margin)
    found, theirs = torch.autograd.grad(loss, (s, t))
    assert (loss.item(), found.item()) == pytest.approx((value, slope))
    assert theirs.item() == pytest.approx(-slope if teacher > -1 else 0.0)


def test_ofd_margins_equal_the_oracle_and_a_sample_mean() -> None:
    weight = torch.tensor([1.0, -1.0, 0.5, 2.0, 0.3, 0.1, 1e-3, 1e3], dtype=torch.float64)
    bias = torch.tensor([0.0, 0.3, -1.0, 1.0, 0.9, 0.4, -7.0, 5.0], dtype=torch.float64)
    margins = ofd_margin(weight, bias)
    expected = [oracles.ofd_margin(w, b) for w, b in zip(weight.tolist(), bias.tolist(), strict=True)]
    assert margins.tolist() == pytest.approx(expected, rel=1e-10)
    assert margins[5].item() == pytest.approx(-0.3)
    assert margins[0].item() == pytest.approx(-math.sqrt(2 / math.pi))
    x = weight[3] * torch.randn(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + bias[3]
    assert margins[3].item() == pytest.approx(x[x < 0].mean().item(), rel=1e-2)


def test_ofd_margins_at_the_edges() -> None:
    weight = torch.tensor([0.0, 0.0, 0.0, 1e-300, 1e-300, 1.0, 1e-30, 1.0], dtype=torch.float64)
    bias = torch.tensor([2.0, -2.0, 0.0, 2.0, -2.0, -1e6, 1e6, 38.0], dtype=torch.float64)
    margins = ofd_margin(weight, bias)
    assert margins.tolist() == pytest.approx([0.0, -2.0, 0.0, 0.0, -2.0, -1e6, 0.0, -3.0], abs=1e-20)
    assert (margins <= 0).all()
    half = ofd_margin(torch.nn.Parameter(torch.tensor([0.5, 0.0]).half()), torch.zeros(2).half())
    assert half.dtype == torch.float32
    assert not half.requires_grad
    assert half.tolist() == pytest.approx([-0.5 * math.sqrt(2 / math.pi), 0.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("raw", [-1e4, -100.0, -5.0, 0.0, 20.0, 89.0, 100.0, 1e4])
def test_vid_at_any_variance(raw: float, dtype: torch.dtype) -> None:
    s, t = torch.full((2, 1, 3, 3), 1.5, dtype=dtype), torch.zeros(2, 1, 3, 3, dtype=dtype)
    rho = torch.tensor([raw], dtype=dtype, requires_grad=True)
    value = vid(s.requires_grad_(), t, raw_variance=rho, eps=1e-5)
    expected = oracles.vid(s.detach().numpy(), t.numpy(), raw_variance=rho.detach().numpy(), eps=1e-5)
    assert value.item() == pytest.approx(expected, rel=1e-5 if dtype == torch.float32 else 1e-12)
    gradients = torch.autograd.grad(value, (s, rho))
    assert all(g.isfinite().all() for g in gradients)
    if abs(raw) < 50:
        wanted = torch.nn.functional.softplus(rho.detach().double()).item() + 1e-5
        slope = 0.5 * (1 / wanted - 2.25 / wanted**2) / (1 + math.exp(-raw))
        assert gradients[1].item() == pytest.approx(slope, rel=1e-4)


def test_vid_is_least_where_the_variance_is_that_of_the_error() -> None:
    generator = torch.Generator().manual_seed(0)
    s, t = (torch.randn(8, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    variance = (s - t).square().mean((0, 2, 3))
    raw = (variance - 1e-5).expm1().log().requires_grad_()
    value = vid(s, t, raw_variance=raw)
    (gradient,) = torch.autograd.grad(value, raw)
    assert gradient.abs().max() < 1e-12
    assert value.item() == pytest.approx(0.5 * (1 + variance.log().mean().item()))


@pytest.mark.parametrize("variance", [1e-3, 0.5, 5.0, 1e3])
def test_vid_starts_from_the_variance_that_was_asked_for(variance: float) -> None:
    raw = vid_raw_variance(variance, 3, eps=1e-4).double()
    torch.testing.assert_close(torch.logaddexp(raw, 0 * raw) + 1e-4, torch.full_like(raw, variance), rtol=1e-5, atol=0)
    with pytest.raises(AssertionError, match="variance"):
        vid_raw_variance(1e-4, 3, eps=1e-4)
