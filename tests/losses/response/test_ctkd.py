"""Distillation with a learned temperature and a curriculum."""

from __future__ import annotations

import math

import pytest
import torch

from kdschemes.config.losses import response as config
from kdschemes.core.types import Progress
from kdschemes.losses.response.ctkd import CTKD, ctkd, curriculum_strength, learned_temperature, reverse_gradient
from kdschemes.losses.response.kd import kd
from tests.losses import formulas
from tests.losses.cases import LogitCase
from tests.losses.inputs import gradients, logits
from tests.losses.stubs import BIG, SMALL, batch, build, output, same, value_of

CASES = {"ctkd": LogitCase(lambda z, v, y: ctkd(z, v, temperature=torch.tensor(3.0, dtype=z.dtype)))}
OPTIONS = [config.CTKD(start=2.0, span=4.0, initial=0.0)]


SIZES = pytest.mark.parametrize(("n", "c"), [(6, 10), (1, 5), (7, 2), (4, 100), (9, 3)])


@SIZES
@pytest.mark.parametrize("temperature", [1.0, 4.0, 21.0])
def test_is_kd_at_its_temperature(n: int, c: int, temperature: float) -> None:
    z, v = logits(7, n, c, 3.0), logits(8, n, c, 3.0)
    value = ctkd(z, v, temperature=torch.tensor(temperature))
    assert value.item() == pytest.approx(formulas.kd(z.numpy(), v.numpy(), temperature=temperature), rel=1e-10)
    assert value == kd(z, v, temperature=temperature)


def test_the_temperature_moves_to_where_the_loss_is_larger() -> None:
    z, v = logits(9, scale=5.0), logits(10, scale=5.0)
    theta = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    plain = 1.0 + 20.0 * torch.sigmoid(theta)
    (slope,) = gradients(ctkd(z, v, temperature=plain), theta)
    for strength in (0.0, 0.3, 1.0):
        t = learned_temperature(theta, start=1.0, span=20.0, strength=strength)
        assert t.item() == plain.item()
        (reversed_slope,) = gradients(ctkd(z, v, temperature=t), theta)
        torch.testing.assert_close(reversed_slope, -strength * slope)
    step = theta - 1e-3 * reversed_slope
    raised = ctkd(z, v, temperature=1.0 + 20.0 * torch.sigmoid(step))
    assert raised > ctkd(z, v, temperature=plain)


def test_temperature_gradient() -> None:
    z, v, t = logits(11, 3, 4), logits(12, 3, 4), torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ctkd(z, v, temperature=x), t)
    assert torch.autograd.gradcheck(lambda x: ctkd(100 * z, v, temperature=x), t)


@pytest.mark.parametrize(
    ("epoch", "strength"), [(0.0, 1), (0.99, 1), (1.0, 2), (4.5, 5), (9.0, 10), (9.99, 10), (10.0, 10), (200.0, 10)]
)
def test_curriculum_counts_epochs_from_one(epoch: float, strength: int) -> None:
    expected = 0.5 * (1 - math.cos(math.pi * strength / 10))
    assert curriculum_strength(epoch, epochs=10.0) == pytest.approx(expected)
    assert curriculum_strength(200.0, epochs=10.0) == 1.0


def test_gradient_reversal_keeps_values_and_shape() -> None:
    x = torch.randn(2, 3, requires_grad=True)
    y = reverse_gradient(x, strength=0.25)
    assert torch.equal(y, x)
    (g,) = torch.autograd.grad(y, x, torch.ones(2, 3))
    assert torch.equal(g, torch.full((2, 3), -0.25))


def test_the_modules_value_is_kd_at_the_first_temperature() -> None:
    s, t = output(SMALL, 0), output(BIG, 1)
    value = value_of(build(config.CTKD(start=2.0, span=4.0, initial=0.0)), s, t)
    assert value.item() == pytest.approx(kd(s.logits, t.logits, temperature=4.0).item(), rel=1e-6)


def test_the_module_trains_its_temperature_and_saves_it() -> None:
    loss = build(config.CTKD())
    assert isinstance(loss, CTKD)
    assert loss.temperature.item() == pytest.approx(1 + 20 / (1 + math.exp(-1)))
    s, t = output(SMALL, 18), output(BIG, 19)
    slopes = []
    for step in (0, 45, 99, 1000):
        loss.set_progress(Progress(step=step, total_steps=2000, steps_per_epoch=10))
        slopes.append(torch.autograd.grad(loss(s, t, batch(), same), loss.theta)[0].item())
    strengths = [0.5 * (1 - math.cos(math.pi * e / 10)) for e in (1, 5, 10, 10)]
    assert [x / slopes[-1] for x in slopes] == pytest.approx(strengths, rel=1e-5)
    (plain,) = torch.autograd.grad(
        ctkd(s.logits, t.logits, temperature=1.0 + 20.0 * torch.sigmoid(loss.theta)), loss.theta
    )
    assert slopes[-1] == pytest.approx(-plain.item(), rel=1e-5)
    with torch.no_grad():
        loss.theta.fill_(-3.0)
    again = build(config.CTKD())
    again.load_state_dict(loss.state_dict())
    assert isinstance(again, CTKD)
    assert again.temperature.item() == loss.temperature.item()
