"""The convex mix of peers with the least cross-entropy."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional

from kdschemes.schemes.online.convex import convex_weights
from tests.schemes.formulas import array
from tests.schemes.online.cases import LABELS, logits_of
from tests.schemes.online.formulas import linear_mix


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-3, 3.0, 1e4])
def test_the_mix_is_finite_and_no_worse_than_the_peers(scale: float, dtype: torch.dtype) -> None:
    logits = logits_of(3, 7, 10, scale=scale, dtype=dtype)
    full = logits.to(torch.promote_types(dtype, torch.float32))
    by_peer = torch.stack([functional.cross_entropy(z, LABELS, reduction="none") for z in full])
    slack = 1e-6 * (1 + scale)
    weights = convex_weights(logits, LABELS)
    mixed = torch.einsum("k,knc->nc", weights, full.double())
    assert weights.dtype == torch.float64
    assert functional.cross_entropy(mixed, LABELS) <= by_peer.double().mean(1).min() + slack


@pytest.mark.parametrize("scale", [1e-3, 1.0, 8.0, 100.0])
@pytest.mark.parametrize("peers", [2, 3, 5])
def test_weights_are_the_optimum_on_the_simplex(peers: int, scale: float) -> None:
    """The optimality conditions hold, no random mix and no single peer is better, and the order does not matter."""
    labels = torch.arange(40) % 10
    logits = logits_of(peers, 40, 10, seed=peers, scale=scale)
    logits[:, torch.arange(40), labels] += 0.3 * scale * torch.arange(1, peers + 1)[:, None]
    weights = convex_weights(logits, labels)
    assert weights.sum().item() == pytest.approx(1.0, abs=1e-14)
    assert (weights >= 0).all()
    free = weights.clone().requires_grad_()
    value = functional.cross_entropy(torch.einsum("k,knc->nc", free, logits), labels)
    (gradient,) = torch.autograd.grad(value, free)
    assert (weights * (gradient - gradient.min())).sum() <= 1e-10 * gradient.abs().max()
    generator = torch.Generator().manual_seed(0)
    tried = torch.randn(200, peers, generator=generator, dtype=torch.float64).mul(3).softmax(1)
    for other in torch.cat([tried, torch.eye(peers, dtype=torch.float64)]):
        mixed = torch.einsum("k,knc->nc", other, logits)
        assert functional.cross_entropy(mixed, labels).item() >= value.item() - 1e-12 * scale
    order = torch.randperm(peers, generator=generator)
    torch.testing.assert_close(convex_weights(logits[order], labels), weights[order], rtol=1e-9, atol=1e-12)


def test_weights_of_two_peers_are_those_of_a_bisection() -> None:
    for seed, scale in itertools.product(range(3), (0.1, 3.0, 30.0)):
        logits = logits_of(2, 7, 10, seed=seed, scale=scale)
        logits[:, torch.arange(7), LABELS] += scale * torch.tensor([1.0, 1.5])[:, None]
        _, expected = linear_mix([array(z) for z in logits], LABELS.tolist())
        assert convex_weights(logits, LABELS).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-11)


def test_weights_of_peers_that_agree_are_equal() -> None:
    z = logits_of(1, 7, 10)
    assert convex_weights(z.expand(3, -1, -1), LABELS).tolist() == pytest.approx([1 / 3] * 3, abs=1e-12)
    assert convex_weights(torch.zeros(2, 1, 10), LABELS[:1]).tolist() == [0.5, 0.5]
    certain = 1e4 * functional.one_hot(LABELS, 10).double().expand(2, -1, -1)
    assert convex_weights(certain, LABELS).tolist() == [0.5, 0.5]


def test_weights_of_logits_that_are_not_finite_are_nan() -> None:
    """The check of each step then names the term of the diverging peer."""
    for bad in (torch.nan, torch.inf):
        logits = logits_of(3, 7, 10)
        logits[1, 2, 3] = bad
        assert convex_weights(logits, LABELS).isnan().all()
