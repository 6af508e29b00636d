"""Correlations of outputs: against the oracle, invariances, constant rows and columns, every way to guard a zero."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from kdschemes.losses.response.dist import dist
from tests.losses import oracles_response as oracles

EPSILONS: list[Literal["none", "added", "clamped"]] = ["none", "added", "clamped"]


def logits(seed: int, n: int = 6, c: int = 10, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, c, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize(("n", "c"), [(6, 10), (2, 3), (1, 7), (4, 100)])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 100.0])
def test_equals_the_oracle(epsilon: Literal["none", "added", "clamped"], n: int, c: int, temperature: float) -> None:
    for scale in (0.1, 1.0, 5.0):
        z, v = logits(0, n, c, scale), logits(1, n, c, scale)
        value = dist(z, v, temperature=temperature, beta=2.0, gamma=3.0, epsilon=epsilon)
        options = {"temperature": temperature, "beta": 2.0, "gamma": 3.0}
        truth = oracles.dist(z.numpy(), v.numpy(), **options, epsilon=epsilon)
        assert value.item() == pytest.approx(truth, rel=1e-10)


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize(("c", "temperature", "scale"), [(1000, 100.0, 50.0), (100, 1.0, 50.0), (1000, 100.0, 1.0)])
def test_single_precision_equals_double(
    epsilon: Literal["none", "added", "clamped"], c: int, temperature: float, scale: float
) -> None:
    z, v = logits(2, 8, c, scale).float(), logits(3, 8, c, scale).float()
    value = dist(z, v, temperature=temperature, epsilon=epsilon)
    truth = dist(z.double(), v.double(), temperature=temperature, epsilon=epsilon)
    assert value.item() == pytest.approx(truth.item(), rel=1e-5)


def test_values_of_the_references_where_their_guard_is_felt() -> None:
    z, v = logits(4, 2, 1000, 50.0), logits(5, 2, 1000, 50.0)
    added, clamped, exact = (dist(z, v, temperature=100.0, epsilon=e).item() for e in ("added", "clamped", "none"))
    assert abs(added / exact - 1) > 1e-4
    assert abs(clamped / exact - 1) < abs(added / exact - 1)


def test_exact_correlation_does_not_die_at_a_high_temperature() -> None:
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


def test_only_relations_count() -> None:
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
def test_a_batch_of_one_has_no_relation_between_samples(epsilon: Literal["none", "added", "clamped"]) -> None:
    z, v = logits(12, n=1).float().requires_grad_(), logits(13, n=1).float()
    intra = dist(z, v, temperature=2.0, beta=0.0, gamma=3.0, epsilon=epsilon)
    assert intra.item() == 12.0
    assert not torch.autograd.grad(intra, z)[0].any()
    assert torch.autograd.grad(dist(z, v, temperature=2.0, epsilon=epsilon), z)[0].any()


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("level", [0.0, 0.1, 7.3])
def test_constant_rows_correlate_with_nothing(epsilon: Literal["none", "added", "clamped"], level: float) -> None:
    z = torch.full((3, 5), level, requires_grad=True)
    v = logits(14, 3, 5).float().requires_grad_()
    value = dist(z, v, temperature=1.0, beta=1.0, gamma=1.0, epsilon=epsilon)
    assert value.item() == pytest.approx(2.0)
    gradients = torch.autograd.grad(value, (z, v))
    assert all(g.isfinite().all() for g in gradients)
    assert not gradients[0].any()


def test_columns_that_underflow_keep_their_relations() -> None:
    z, v = logits(15, scale=60.0).float(), logits(16, scale=60.0).float()
    value = dist(z, v, temperature=1.0, beta=0.0, gamma=1.0)
    truth = oracles.dist(z.double().numpy(), v.double().numpy(), temperature=1.0, beta=0.0, gamma=1.0, epsilon="none")
    assert torch.softmax(z, 1).amax(0).min() < 1e-10
    assert value.item() == pytest.approx(truth, rel=1e-5)
