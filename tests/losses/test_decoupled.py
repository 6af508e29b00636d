"""Decoupled, normalized, weighted and hand-made targets: against oracles that are exact at any logits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from kdschemes.losses.response.dkd import dkd, split_label
from kdschemes.losses.response.kd import kd
from kdschemes.losses.response.nkd import nkd
from kdschemes.losses.response.soft_ce import soft_ce
from kdschemes.losses.response.tfkd_reg import tfkd_reg
from kdschemes.losses.response.wsld import wsld
from tests.losses import oracles, oracles_response


def inputs(seed: int, n: int = 6, c: int = 10, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z, v = (scale * torch.randn(n, c, generator=generator, dtype=torch.float64) for _ in range(2))
    return z, v, torch.randint(c, (n,), generator=generator)


def gradient(loss: Tensor, x: Tensor) -> Tensor:
    (g,) = torch.autograd.grad(loss, x)
    return g


SIZES = pytest.mark.parametrize(("n", "c"), [(6, 10), (1, 4), (5, 2), (2, 100)])


@SIZES
@pytest.mark.parametrize("temperature", [1.0, 4.0, 100.0])
@pytest.mark.parametrize("scale", [0.1, 1.0, 50.0])
def test_dkd_equals_the_oracle(n: int, c: int, temperature: float, scale: float) -> None:
    z, v, y = inputs(0, n, c, scale)
    z.requires_grad_()
    value = dkd(z, v, y, temperature=temperature, alpha=2.0, beta=3.0)
    arrays = z.detach().numpy(), v.numpy(), y.tolist()
    truth = oracles_response.dkd(*arrays, temperature=temperature, alpha=2.0, beta=3.0)
    assert value.item() == pytest.approx(truth, rel=1e-10)
    slope = oracles_response.dkd_gradient(*arrays, temperature=temperature, alpha=2.0, beta=3.0)
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
def test_dkd_is_exact_at_extreme_logits(case: str, dtype: torch.dtype) -> None:
    z, v = (torch.tensor([row], dtype=dtype, requires_grad=True) for row in EXTREMES[case])
    for alpha, beta in ((1.0, 8.0), (1.0, 0.0), (0.0, 8.0)):
        value = dkd(z, v, torch.tensor([0]), temperature=1.0, alpha=alpha, beta=beta)
        arrays = z.detach().double().numpy(), v.detach().double().numpy(), [0]
        truth = oracles_response.dkd(*arrays, temperature=1.0, alpha=alpha, beta=beta)
        assert value.item() == pytest.approx(truth, rel=1e-11 if dtype == torch.float64 else 1e-5)
        gz, gv = torch.autograd.grad(value, (z, v))
        assert gv.isfinite().all()
        slope = oracles_response.dkd_gradient(*arrays, temperature=1.0, alpha=alpha, beta=beta)
        tolerance = 1e-6 if dtype in (torch.float32, torch.float64) else 1e-2
        np.testing.assert_allclose(gz.double(), slope, rtol=tolerance, atol=tolerance * np.abs(slope).max() + 1e-7)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 1000.0])
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_kd_is_decoupled_into_both_parts(temperature: float, scale: float) -> None:
    z, v, y = inputs(1, scale=scale)
    share = torch.softmax(v / temperature, dim=1).gather(1, y[:, None])[:, 0]
    parts = []
    for i in range(len(z)):
        row = z[i : i + 1], v[i : i + 1], y[i : i + 1]
        target, others = (dkd(*row, temperature=temperature, alpha=a, beta=b) for a, b in ((1.0, 0.0), (0.0, 1.0)))
        parts.append(target + (1 - share[i]) * others)
    torch.testing.assert_close(torch.stack(parts).mean(), kd(z, v, temperature=temperature), rtol=1e-9, atol=0)


def test_dkd_is_a_divergence() -> None:
    z, v, y = inputs(2)
    for x in (z, z.float(), 20 * z.float(), 0.01 * z.float()):
        value = dkd(x, x.clone(), y, temperature=4.0)
        assert value.item() == 0.0
    assert dkd(z, v, y, temperature=4.0) > 0
    close = dkd(v + 1e-4 * z, v, y, temperature=4.0)
    in_single = dkd((v + 1e-4 * z).float(), v.float(), y, temperature=4.0)
    assert 0 < close < 1e-6
    assert in_single.item() == pytest.approx(close.item(), rel=5e-2)
    torch.testing.assert_close(dkd(3 * z, 3 * v, y, temperature=12.0), 9 * dkd(z, v, y, temperature=4.0))


def test_dkd_keeps_its_digits_at_a_high_temperature() -> None:
    z, v, y = (x.float() if x.is_floating_point() else x for x in inputs(3, c=100))
    value = dkd(z, v, y, temperature=1000.0)
    truth = oracles_response.dkd(z.double().numpy(), v.double().numpy(), y.tolist(), temperature=1000.0)
    assert value.item() == pytest.approx(truth, rel=1e-4)


def test_split_label() -> None:
    logits = torch.arange(12.0).reshape(3, 4)
    label, others = split_label(logits, torch.tensor([0, 3, 1]))
    assert label.tolist() == [0.0, 7.0, 9.0]
    assert others.tolist() == [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [8.0, 10.0, 11.0]]


@SIZES
@pytest.mark.parametrize("temperature", [1.0, 4.0, 100.0])
@pytest.mark.parametrize("scale", [0.1, 1.0, 50.0])
def test_nkd_wsld_and_soft_ce_equal_the_oracle(n: int, c: int, temperature: float, scale: float) -> None:
    z, v, y = inputs(4, n, c, scale)
    arrays = z.numpy(), v.numpy()
    value = nkd(z, v, y, temperature=temperature, gamma=0.7)
    truth = oracles_response.nkd(*arrays, y.tolist(), temperature=temperature, gamma=0.7)
    assert value.item() == pytest.approx(truth, rel=1e-10)
    value = wsld(z, v, y, temperature=temperature)
    assert value.item() == pytest.approx(
        oracles_response.wsld(*arrays, y.tolist(), temperature=temperature), rel=1e-10, abs=1e-12
    )
    value = soft_ce(z, v, temperature=temperature)
    assert value.item() == pytest.approx(oracles_response.soft_ce(*arrays, temperature=temperature), rel=1e-10)


def test_soft_ce_is_kd_plus_the_teachers_entropy() -> None:
    z, v, _ = inputs(5)
    z.requires_grad_()
    p = torch.softmax(v / 3.0, dim=1)
    entropy = 9.0 * -(p * p.log()).sum(dim=1).mean()
    value, plain = soft_ce(z, v, temperature=3.0), kd(z, v, temperature=3.0)
    torch.testing.assert_close(value, plain + entropy)
    torch.testing.assert_close(gradient(value, z), gradient(plain, z))
    torch.testing.assert_close(soft_ce(z, v, temperature=3.0, scale=False) * 9.0, value)


def test_nkd_gradient_is_that_of_both_parts() -> None:
    z, v, y = inputs(6)
    z.requires_grad_(), v.requires_grad_()
    one_hot, share = torch.eye(10)[y], torch.softmax(v, 1).gather(1, y[:, None]).detach()
    value = nkd(z, v, y, temperature=2.0, gamma=0.0)
    torch.testing.assert_close(gradient(value, z), share * (torch.softmax(z, 1) - one_hot) / 6)
    _, teacher = torch.autograd.grad(nkd(z, v, y, temperature=2.0, gamma=0.0), (z, v))
    assert not teacher.any()
    _, teacher = torch.autograd.grad(nkd(z, v, y, temperature=2.0), (z, v))
    assert teacher.any()
    assert not teacher.gather(1, y[:, None]).any()


def test_nkd_of_two_classes_is_its_first_part() -> None:
    z, v, y = inputs(7, c=2)
    assert nkd(z, v, y, gamma=5.0) == nkd(z, v, y, gamma=0.0)


def test_wsld_weights_pass_no_gradient() -> None:
    z, v, y = inputs(8, n=1)
    z.requires_grad_()
    weight = wsld(z, v, y, temperature=2.0) / soft_ce(z, v, temperature=2.0)
    expected = weight.detach() * gradient(soft_ce(z, v, temperature=2.0), z)
    torch.testing.assert_close(gradient(wsld(z, v, y, temperature=2.0), z), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("ahead", "behind"), [(25.0, 20.0), (20.0, 25.0), (12.0, 12.0), (300.0, 20.0), (20.0, 300.0)])
def test_wsld_weighs_certain_samples_exactly(ahead: float, behind: float, dtype: torch.dtype) -> None:
    z = torch.tensor([[ahead, 0.0, 1.0]], dtype=dtype)
    v = torch.tensor([[behind, 1.0, 0.0]], dtype=dtype)
    value = wsld(z, v, torch.tensor([0]), temperature=2.0)
    truth = oracles_response.wsld(z.double().numpy(), v.double().numpy(), [0], temperature=2.0)
    assert value.item() == pytest.approx(truth, rel=1e-9 if dtype == torch.float64 else 1e-4, abs=1e-7)


@SIZES
@pytest.mark.parametrize("temperature", [0.1, 1.0, 20.0])
@pytest.mark.parametrize("label_prob", [0.5, 0.99, 1.0])
def test_tfkd_reg_equals_the_oracle(n: int, c: int, temperature: float, label_prob: float) -> None:
    z, _, y = inputs(9, n, c, 3.0)
    value = tfkd_reg(z, y, temperature=temperature, label_prob=label_prob, multiplier=7.0)
    truth = oracles_response.tfkd_reg(
        z.numpy(), y.tolist(), temperature=temperature, label_prob=label_prob, multiplier=7.0
    )
    assert value.item() == pytest.approx(truth, rel=1e-9)


def test_tfkd_reg_vanishes_at_its_target() -> None:
    y = torch.tensor([2, 0])
    made = torch.full((2, 5), 0.0025).scatter(1, y[:, None], 0.99)
    assert tfkd_reg(made / 20.0, y).item() == pytest.approx(0.0, abs=1e-12)
    assert tfkd_reg(torch.zeros(2, 5), y).item() > 0


def test_kd_conventions() -> None:
    z, v, _ = inputs(10)
    value = kd(z, v, temperature=3.0)
    assert value.item() == pytest.approx(oracles.kd(z.numpy(), v.numpy(), temperature=3.0), rel=1e-12)
    torch.testing.assert_close(kd(z, v, temperature=3.0, scale=False) * 9.0, value)
    torch.testing.assert_close(kd(z, v, temperature=3.0, reduction="mean") * 10.0, value)
    p, log_q = torch.softmax(v / 3.0, 1), torch.log_softmax(z / 3.0, 1)
    with pytest.warns(UserWarning, match="reduction"):
        torch_default = torch.nn.functional.kl_div(log_q, p)
    torch.testing.assert_close(kd(z, v, temperature=3.0, scale=False, reduction="mean"), torch_default)


def test_equal_logits() -> None:
    z, y = torch.zeros(3, 5), torch.tensor([0, 1, 4])
    assert dkd(z, z, y, temperature=4.0).item() == 0.0
    assert nkd(z, z, y).item() == pytest.approx(math.log(5) / 5 + 1.5 * math.log(4))
    assert wsld(z, z, y, temperature=2.0).item() == pytest.approx(4 * math.log(5) * (1 - math.exp(-1)), rel=1e-5)
