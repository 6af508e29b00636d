"""One minus the correlation of outputs, within samples and within classes."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from kdschemes.config.losses import response as config
from kdschemes.core.loss import Endpoint
from kdschemes.core.types import Batch, DataSpec, Output
from kdschemes.losses.build import build_loss
from kdschemes.losses.response.dist import dist
from tests.losses.cases import Inputs, LogitCase, Parameters, Reference
from tests.losses.formulas import Array, softmax
from tests.losses.inputs import logits, logits_and_labels

Epsilon = Literal["none", "added", "clamped"]
EPSILONS: list[Epsilon] = ["none", "added", "clamped"]


def correlation(a: Array, b: Array, epsilon: str) -> float:
    x, y = a - a.mean(), b - b.mean()
    if not (x.any() and y.any()):
        return 0.0
    lengths = math.sqrt(math.fsum(x * x)), math.sqrt(math.fsum(y * y))
    products = {
        "none": lengths[0] * lengths[1],
        "added": lengths[0] * lengths[1] + 1e-8,
        "clamped": max(lengths[0], 1e-8) * max(lengths[1], 1e-8),
    }
    return math.fsum(x * y) / products[epsilon]


def formula(student: Array, teacher: Array, *, temperature: float, beta: float, gamma: float, epsilon: str) -> float:
    s, t = (np.stack([softmax(row) for row in x / temperature]) for x in (student, teacher))
    inter = sum(1 - correlation(a, b, epsilon) for a, b in zip(s, t, strict=True)) / len(s)
    intra = sum(1 - correlation(a, b, epsilon) for a, b in zip(s.T, t.T, strict=True)) / s.shape[1]
    return float(temperature**2 * (beta * inter + gamma * intra))


CASES = {
    "dist": LogitCase(lambda z, v, y: dist(z, v, temperature=2.0), by_sample=False),
    "dist-added": LogitCase(lambda z, v, y: dist(z, v, temperature=2.0, epsilon="added"), by_sample=False, zero=False),
    "dist-clamped": LogitCase(
        lambda z, v, y: dist(z, v, temperature=2.0, epsilon="clamped"), by_sample=False, zero=False
    ),
}
OPTIONS = [
    config.DIST(temperature=2.0, beta=1.0, gamma=3.0, scale=False),
    config.DIST(epsilon="added"),
    config.DIST(epsilon="clamped", standardize=True),
]


def relations(x: Inputs, p: Parameters, epsilon: Epsilon = "added", scale: bool = True) -> Tensor:
    return dist(x["s"], x["t"], temperature=float(p["T"]), beta=1.0, gamma=1.0, epsilon=epsilon, scale=scale)


REFERENCES: dict[str, Reference] = {
    "DIST.sota": relations,
    "DIST.mmrazor": relations,
    "DIST.DIST_KD_seg": lambda x, p: relations(x, {"T": 1.0}, scale=False),
    "DIST.torchdistill": lambda x, p: relations(x, p, "clamped"),
}


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize(("n", "c"), [(6, 10), (2, 3), (1, 7), (4, 100)])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 100.0])
def test_value_equals_the_formula(epsilon: Epsilon, n: int, c: int, temperature: float) -> None:
    for scale in (0.1, 1.0, 5.0):
        z, v = logits(0, n, c, scale), logits(1, n, c, scale)
        value = dist(z, v, temperature=temperature, beta=2.0, gamma=3.0, epsilon=epsilon)
        options = {"temperature": temperature, "beta": 2.0, "gamma": 3.0}
        truth = formula(z.numpy(), v.numpy(), **options, epsilon=epsilon)
        assert value.item() == pytest.approx(truth, rel=1e-10)


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize(("c", "temperature", "scale"), [(1000, 100.0, 50.0), (100, 1.0, 50.0), (1000, 100.0, 1.0)])
def test_single_precision_equals_double(epsilon: Epsilon, c: int, temperature: float, scale: float) -> None:
    z, v = logits(2, 8, c, scale).float(), logits(3, 8, c, scale).float()
    value = dist(z, v, temperature=temperature, epsilon=epsilon)
    truth = dist(z.double(), v.double(), temperature=temperature, epsilon=epsilon)
    assert value.item() == pytest.approx(truth.item(), rel=1e-5)


def test_the_references_epsilon_changes_the_value() -> None:
    z, v = logits(4, 2, 1000, 50.0), logits(5, 2, 1000, 50.0)
    added, clamped, exact = (dist(z, v, temperature=100.0, epsilon=e).item() for e in ("added", "clamped", "none"))
    assert abs(added / exact - 1) > 1e-4
    assert abs(clamped / exact - 1) < abs(added / exact - 1)


def test_without_epsilon_the_gradient_does_not_vanish_at_a_high_temperature() -> None:
    z, v = logits(6, 8, 1000).float().requires_grad_(), logits(7, 8, 1000).float()
    values, norms = {}, {}
    for epsilon in ("none", "added"):
        for temperature in (1e2, 1e4):
            value = dist(z, v, temperature=temperature, epsilon=epsilon, scale=False)
            values[epsilon, temperature] = value.item()
            norms[epsilon, temperature] = torch.autograd.grad(value, z)[0].norm().item()
    assert norms["none", 1e4] == pytest.approx(norms["none", 1e2], rel=0.05)
    assert norms["added", 1e4] < 1e-2 * norms["added", 1e2]
    assert values["added", 1e4] == pytest.approx(4.0, rel=1e-3)
    x = v - v.mean(dim=1, keepdim=True)
    close = dist(x + 0.1 * (z.detach() - z.detach().mean(dim=1, keepdim=True)), x, temperature=1e4, scale=False)
    assert 0 < close.item() < 0.1
    same = dist(3.0 * x, x, temperature=1e6, scale=False)
    assert same.item() == pytest.approx(0.0, abs=1e-8)


def test_only_correlations_count() -> None:
    z, v = logits(8), logits(9)
    value = dist(z, v, temperature=2.0)
    assert 0 < value < 4 * (2.0 + 2.0) * 2
    torch.testing.assert_close(dist(v, z, temperature=2.0), value)
    torch.testing.assert_close(dist(z, v, temperature=2.0, scale=False) * 4.0, value)
    inter = dist(z, v, temperature=2.0, beta=1.0, gamma=0.0)
    intra = dist(z, v, temperature=2.0, beta=0.0, gamma=1.0)
    torch.testing.assert_close(2.0 * inter + 2.0 * intra, value)
    p, q = torch.softmax(z / 2.0, 1), torch.softmax(v / 2.0, 1)
    rows = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(p, q, strict=True)])
    columns = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(p.T, q.T, strict=True)])
    torch.testing.assert_close(inter, 4 * (1 - rows.mean()))
    torch.testing.assert_close(intra, 4 * (1 - columns.mean()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equal_outputs(dtype: torch.dtype) -> None:
    z = logits(10, scale=3.0).to(dtype).requires_grad_()
    value = dist(z, z.detach().clone(), temperature=4.0)
    assert value.item() == 0.0
    assert not torch.autograd.grad(value, z)[0].any()
    many = logits(11, c=100).to(dtype)
    assert dist(many, many.clone(), temperature=4.0, beta=1.0, gamma=1.0, epsilon="added").item() > 1e-5


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_a_batch_of_one_has_no_relation_between_samples(epsilon: Epsilon) -> None:
    z, v = logits(12, n=1).float().requires_grad_(), logits(13, n=1).float()
    intra = dist(z, v, temperature=2.0, beta=0.0, gamma=3.0, epsilon=epsilon)
    assert intra.item() == 12.0
    assert not torch.autograd.grad(intra, z)[0].any()
    assert torch.autograd.grad(dist(z, v, temperature=2.0, epsilon=epsilon), z)[0].any()


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("level", [0.0, 0.1, 7.3])
def test_the_correlation_with_a_constant_row_is_zero(epsilon: Epsilon, level: float) -> None:
    z = torch.full((3, 5), level, requires_grad=True)
    v = logits(14, 3, 5).float().requires_grad_()
    value = dist(z, v, temperature=1.0, beta=1.0, gamma=1.0, epsilon=epsilon)
    assert value.item() == pytest.approx(2.0)
    gradients = torch.autograd.grad(value, (z, v))
    assert all(g.isfinite().all() for g in gradients)
    assert not gradients[0].any()


def test_classes_whose_probabilities_underflow() -> None:
    z, v = logits(15, scale=60.0).float(), logits(16, scale=60.0).float()
    value = dist(z, v, temperature=1.0, beta=0.0, gamma=1.0)
    truth = formula(z.double().numpy(), v.double().numpy(), temperature=1.0, beta=0.0, gamma=1.0, epsilon="none")
    assert torch.softmax(z, 1).amax(0).min() < 1e-10
    assert value.item() == pytest.approx(truth, rel=1e-5)


def test_the_module_compares_the_samples_of_all_processes() -> None:
    z, v, y = logits_and_labels(10)
    loss = build_loss(config.DIST(), student=Endpoint(), teacher=Endpoint(), data_spec=DataSpec(10, 3, 8))
    rest = iter([z[3:], v[3:]])
    batch = Batch(torch.zeros(3, 3, 8, 8), y[:3], torch.arange(3))
    value = loss(Output(z[:3]), Output(v[:3]), batch, lambda x: torch.cat([x, next(rest)]))
    assert value == dist(z, v, temperature=4.0)
    assert loss.needs_global_batch


def test_published_with_a_full_hard_term() -> None:
    options = config.DIST()
    assert (options.ce_weight, options.schedule, options.ramp_epochs) == (1.0, "constant", 20.0)
