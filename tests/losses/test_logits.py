"""What holds of every loss between logits: precision, extremes, layout, order, gradients, and the modules."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from kdschemes.config.losses import response as config
from kdschemes.core.loss import Endpoint
from kdschemes.core.types import Batch, DataSpec, Output
from kdschemes.errors import UserError
from kdschemes.losses.build import build_loss
from kdschemes.losses.response.dist import dist
from kdschemes.losses.response.dkd import dkd
from kdschemes.losses.response.kd import kd
from kdschemes.losses.response.logit_mse import logit_mse
from kdschemes.losses.response.nkd import nkd
from kdschemes.losses.response.soft_ce import soft_ce
from kdschemes.losses.response.standardize import standardize
from kdschemes.losses.response.tfkd_reg import tfkd_reg
from kdschemes.losses.response.wsld import wsld
from tests.losses import oracles_response as oracles

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def soft(function: Callable[..., Tensor], **options: Any) -> Loss:
    return lambda z, v, y: function(z, v, **options)


def standardized(function: Callable[..., Tensor], **options: Any) -> Loss:
    return lambda z, v, y: function(standardize(z), standardize(v), **options)


LOSSES: dict[str, Loss] = {
    "kd": soft(kd, temperature=2.0, scale=False, reduction="mean"),
    "soft_ce": soft(soft_ce, temperature=2.0),
    "logit_mse": soft(logit_mse),
    "lskd": standardized(kd, temperature=2.0),
    "dkd": partial(dkd, temperature=2.0),
    "nkd": partial(nkd, temperature=2.0),
    "wsld": partial(wsld, temperature=2.0),
    "dist": soft(dist, temperature=2.0),
    "dist-added": soft(dist, temperature=2.0, epsilon="added"),
    "dist-clamped": soft(dist, temperature=2.0, epsilon="clamped"),
    "tfkd_reg": lambda z, v, y: tfkd_reg(z, y),
}
BY_SAMPLE = [name for name in LOSSES if not name.startswith("dist")]
OPTIONS = [
    config.KD(standardize=True),
    config.KD(scale=False, reduction="mean"),
    config.SoftCE(temperature=3.0),
    config.SoftCE(scale=False),
    config.LogitMSE(standardize=True),
    config.DKD(alpha=2.0, beta=3.0, temperature=1.5),
    config.NKD(gamma=0.5, temperature=3.0),
    config.DIST(temperature=2.0, beta=1.0, gamma=3.0, scale=False),
    config.DIST(epsilon="added"),
    config.DIST(epsilon="clamped", standardize=True),
    config.WSLD(temperature=3.0),
]


def inputs(seed: int, n: int = 6, c: int = 10, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z, v = (scale * torch.randn(n, c, generator=generator, dtype=torch.float64) for _ in range(2))
    return z, v, torch.randint(c, (n,), generator=generator)


def value_and_gradient(loss: Loss, z: Tensor, v: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    z = z.detach().requires_grad_()
    value = loss(z, v, y)
    (gradient,) = torch.autograd.grad(value, z)
    return value.detach(), gradient


def rounding(gradient: Tensor) -> float:
    """Half of the least number that the gradient's dtype has, for each element: what underflow alone can cost."""
    least = torch.finfo(gradient.dtype).smallest_normal * torch.finfo(gradient.dtype).eps
    return float(0.5 * least * gradient.numel() ** 0.5)


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"wsld"}))
@pytest.mark.parametrize(("n", "c"), [(4, 5), (1, 4), (3, 2)])
def test_gradients_of_both_sides(name: str, n: int, c: int) -> None:
    z, v, y = inputs(1, n, c)
    loss = LOSSES[name]
    assert torch.autograd.gradcheck(lambda a, b: loss(a, b, y), (z.requires_grad_(), v), atol=1e-6)
    if name not in ("tfkd_reg", "nkd"):
        assert torch.autograd.gradcheck(lambda a, b: loss(a, b, y), (z, v.requires_grad_()), atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("c", "scale"), [(10, 1.0), (100, 3.0), (1000, 0.3)])
def test_half_precision(name: str, dtype: torch.dtype, c: int, scale: float) -> None:
    z, v, y = inputs(2, c=c, scale=scale)
    z, v = z.to(dtype), v.to(dtype)
    truth, slope = value_and_gradient(LOSSES[name], z.double(), v.double(), y)
    value, gradient = value_and_gradient(LOSSES[name], z, v, y)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(truth.item(), rel=1e-4)
    assert gradient.dtype == dtype
    assert (gradient.double() - slope).norm() < 1e-2 * slope.norm() + rounding(gradient)


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_changes_nothing(name: str) -> None:
    z, v, y = inputs(3)
    plain = value_and_gradient(LOSSES[name], z.float(), v.float(), y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = value_and_gradient(LOSSES[name], z.float(), v.float(), y)
    assert torch.equal(plain[0], inside[0])
    assert torch.equal(plain[1], inside[1])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gap", [0.0, 18.0, 104.0, 1000.0, 3e4])
def test_value_and_gradients_are_finite_at_extreme_logits(name: str, dtype: torch.dtype, gap: float) -> None:
    z = gap * torch.tensor([[1.0, 0, 0], [0, 1, -1], [1, 1, 0.9], [0, 0, 0], [0, 1, 0]], dtype=dtype)
    v = gap * torch.tensor([[0.0, 1, 0], [0, 1, 0.1], [1, 1, 0.9], [1, 0, 0], [0, 0, 0]], dtype=dtype)
    z.requires_grad_(), v.requires_grad_()
    for y in (torch.tensor([0, 1, 2, 0, 2]), torch.tensor([1, 2, 0, 1, 1])):
        value = LOSSES[name](z, v, y)
        gradients = torch.autograd.grad(value, (z, v), allow_unused=name == "tfkd_reg")
        assert value.isfinite()
        assert all(g.isfinite().all() for g in gradients if g is not None)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_wide_logits_of_many_classes(name: str, dtype: torch.dtype) -> None:
    z, v, y = inputs(4, n=2, c=1000, scale=50.0)
    z, v = z.to(dtype), v.to(dtype)
    truth, slope = value_and_gradient(LOSSES[name], z.double(), v.double(), y)
    value, gradient = value_and_gradient(LOSSES[name], z, v, y)
    assert value.item() == pytest.approx(truth.item(), rel=1e-4)
    assert (gradient.double() - slope).norm() < 1e-2 * slope.norm() + rounding(gradient)


@pytest.mark.parametrize("name", LOSSES)
def test_layout_and_order(name: str) -> None:
    z, v, y = inputs(5)
    value, gradient = value_and_gradient(LOSSES[name], z, v, y)
    columns = value_and_gradient(LOSSES[name], z.T.contiguous().T, v.T.contiguous().T, y)
    torch.testing.assert_close(columns, (value, gradient))
    samples, classes = torch.tensor([3, 1, 5, 0, 4, 2]), torch.tensor([7, 2, 9, 0, 1, 8, 3, 6, 5, 4])
    torch.testing.assert_close(LOSSES[name](z[samples], v[samples], y[samples]), value)
    torch.testing.assert_close(LOSSES[name](z[:, classes], v[:, classes], classes.argsort()[y]), value)
    torch.testing.assert_close(LOSSES[name](z + torch.arange(6.0)[:, None], v - 3.0, y), value)


@pytest.mark.parametrize("name", BY_SAMPLE)
def test_a_batch_is_the_mean_of_its_samples(name: str) -> None:
    z, v, y = inputs(6)
    rows = [LOSSES[name](z[i : i + 1], v[i : i + 1], y[i : i + 1]) for i in range(6)]
    torch.testing.assert_close(LOSSES[name](z, v, y), torch.stack(rows).mean())


@pytest.mark.parametrize("name", ["kd", "logit_mse", "lskd", "dkd", "dist"])
def test_zero_where_both_are_equal(name: str) -> None:
    z, _, y = inputs(7)
    for x in (z, 30 * z):
        value, gradient = value_and_gradient(LOSSES[name], x.float(), x.float(), y)
        assert value.item() == 0.0
        assert gradient.abs().max() == 0.0
        shifted, gradient = value_and_gradient(LOSSES[name], (x + 8.0).float(), x.float(), y)
        assert 0.0 <= shifted.item() < 1e-9
        assert gradient.abs().max() < 1e-4


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_modules_give_the_functions_values(options: Any) -> None:
    z, v, y = inputs(8)
    given = z, v
    if options.standardize:
        given = standardize(z), standardize(v)
    names = {"temperature", "alpha", "beta", "gamma", "scale", "reduction", "epsilon"}
    chosen = {name: getattr(options, name) for name in names if hasattr(options, name)}
    labels = [y] if options.reads_labels else []
    expected = getattr(import_module(f"kdschemes.losses.response.{options.name}"), options.name)(
        *given, *labels, **chosen
    )
    loss = build_loss(options, student=Endpoint(), teacher=Endpoint(), data_spec=DataSpec(10, 3, 8))
    batch = Batch(torch.zeros(6, 3, 8, 8), y, torch.arange(6))
    assert loss(Output(z), Output(v), batch, lambda x: x) == expected


def test_hand_made_teacher_is_all_that_its_module_reads() -> None:
    z, v, y = inputs(9)
    options = config.TFKDReg(temperature=2.0, label_prob=0.9, multiplier=3.0)
    loss = build_loss(options, student=Endpoint(), teacher=Endpoint(), data_spec=DataSpec(10, 3, 8))
    batch = Batch(torch.zeros(6, 3, 8, 8), y, torch.arange(6))
    value = loss(Output(z), Output(v), batch, lambda x: x)
    assert value == loss(Output(z), Output(-v), batch, lambda x: x)
    truth = oracles.tfkd_reg(z.numpy(), y.tolist(), temperature=2.0, label_prob=0.9, multiplier=3.0)
    assert value.item() == pytest.approx(truth, rel=1e-10)


def test_dist_compares_the_samples_of_all_processes() -> None:
    z, v, y = inputs(10)
    loss = build_loss(config.DIST(), student=Endpoint(), teacher=Endpoint(), data_spec=DataSpec(10, 3, 8))
    rest = iter([z[3:], v[3:]])
    batch = Batch(torch.zeros(3, 3, 8, 8), y[:3], torch.arange(3))
    value = loss(Output(z[:3]), Output(v[:3]), batch, lambda x: torch.cat([x, next(rest)]))
    assert value == dist(z, v, temperature=4.0)
    assert loss.needs_global_batch


@pytest.mark.parametrize("options", [*OPTIONS, config.TFKDReg()], ids=str)
def test_one_class_is_refused(options: Any) -> None:
    with pytest.raises(UserError, match=re.escape(f"{options.name} needs at least 2 classes")):
        build_loss(options, student=Endpoint(), teacher=Endpoint(), data_spec=DataSpec(1, 3, 8))


@pytest.mark.parametrize("options", [config.DKD(), config.NKD(), config.DIST(), config.WSLD()])
def test_published_beside_a_whole_hard_term(options: Any) -> None:
    assert options.ce_weight == 1.0
    assert options.schedule == ("linear" if options.name == "dkd" else "constant")
    assert options.ramp_epochs == 20.0
