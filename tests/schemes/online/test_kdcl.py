"""Mixes of peers that teach: means, mixes made with the labels, weights from held-out errors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kdschemes.core.types import Output
from kdschemes.schemes.online.convex import convex_weights
from kdschemes.schemes.online.kdcl import HeldOutMix, covariance_weights, error_products, minlogit, naive
from tests.schemes.cases import ONLINE, START, build, random_batch
from tests.schemes.formulas import array
from tests.schemes.online import oracles as oracles_online
from tests.schemes.online.cases import LABELS, PEERS, logits_of
from tests.schemes.online.variants import CODISTILLATION, KDCL, MEAN


def test_codistillation_of_two_peers_is_mutual_learning() -> None:
    two = ["losses.response.temperature=1", "scheme.peers=2"]
    for average in ("logits", "probabilities"):
        scheme = build(*MEAN, *two, f"scheme.average={average}", "scheme.members=others")
        expected, batch = build(*ONLINE), random_batch()
        assert scheme(batch, START).total.item() == pytest.approx(expected(batch, START).total.item(), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mean_of_probabilities_is_finite_and_exact_where_one_peer_is_certain(dtype: torch.dtype) -> None:
    scheme = build(*CODISTILLATION)
    logits = [logits_of(7, 10, seed=k, scale=1e4, dtype=dtype) for k in range(3)]
    outputs = {peer: Output(z) for peer, z in zip(PEERS, logits, strict=True)}
    mean = scheme.nodes["others0"](random_batch(n=7), outputs)["others0"].logits
    assert mean.dtype == torch.float32
    assert mean.isfinite().all()
    p = torch.stack([z.double().softmax(1) for z in logits[1:]]).mean(0)
    torch.testing.assert_close(mean.double().softmax(1), p, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-3, 3.0, 1e4])
def test_mixes_are_finite_and_no_worse_than_the_peers(scale: float, dtype: torch.dtype) -> None:
    logits = logits_of(3, 7, 10, scale=scale, dtype=dtype)
    full = logits.to(torch.promote_types(dtype, torch.float32))
    by_peer = torch.stack([functional.cross_entropy(z, LABELS, reduction="none") for z in full])
    slack = 1e-6 * (1 + scale)
    for mix in (naive, minlogit):
        mixed = mix(logits, LABELS)
        assert mixed.dtype == full.dtype
        assert mixed.isfinite().all()
        assert (functional.cross_entropy(mixed, LABELS, reduction="none") <= by_peer.amin(0) + slack).all()
    weights = convex_weights(logits, LABELS)
    mixed = torch.einsum("k,knc->nc", weights, full.double())
    assert weights.dtype == torch.float64
    assert functional.cross_entropy(mixed, LABELS) <= by_peer.double().mean(1).min() + slack


def test_naive_takes_each_samples_best_peer_and_minlogit_each_classs_least_margin() -> None:
    logits = logits_of(3, 7, 10)
    peers = [array(z) for z in logits]
    np.testing.assert_array_equal(array(naive(logits, LABELS)), oracles_online.naive(peers, LABELS.tolist()))
    np.testing.assert_array_equal(array(minlogit(logits, LABELS)), oracles_online.minlogit(peers, LABELS.tolist()))
    assert torch.equal(naive(torch.cat([logits[:1], logits[:1]]), LABELS), logits[0])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 8.0, 100.0])
@pytest.mark.parametrize("peers", [2, 3, 5])
def test_linear_weights_are_the_optimum_on_the_simplex(peers: int, scale: float) -> None:
    """No weight could grow with profit, at any place; the best on a grid and of random mixes is no better."""
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


def test_linear_weights_of_two_peers_are_those_of_a_bisection() -> None:
    for seed, scale in itertools.product(range(3), (0.1, 3.0, 30.0)):
        logits = logits_of(2, 7, 10, seed=seed, scale=scale)
        logits[:, torch.arange(7), LABELS] += scale * torch.tensor([1.0, 1.5])[:, None]
        _, expected = oracles_online.linear([array(z) for z in logits], LABELS.tolist())
        assert convex_weights(logits, LABELS).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-11)


def test_linear_weights_of_peers_that_agree_are_equal() -> None:
    z = logits_of(1, 7, 10)
    assert convex_weights(z.expand(3, -1, -1), LABELS).tolist() == pytest.approx([1 / 3] * 3, abs=1e-12)
    assert convex_weights(torch.zeros(2, 1, 10), LABELS[:1]).tolist() == [0.5, 0.5]
    certain = 1e4 * functional.one_hot(LABELS, 10).double().expand(2, -1, -1)
    assert convex_weights(certain, LABELS).tolist() == [0.5, 0.5]


def test_errors_on_held_out_samples_are_those_of_explicit_loops() -> None:
    logits = logits_of(3, 7, 10)
    expected = oracles_online.error_products([array(z) for z in logits], LABELS.tolist())
    np.testing.assert_allclose(array(error_products(logits, LABELS)), expected, rtol=1e-12)
    assert error_products(logits.bfloat16(), LABELS).dtype == torch.float64
    assert error_products(1e4 * logits, LABELS).isfinite().all()


def test_held_out_weights_minimize_the_error_of_the_sum() -> None:
    products = error_products(logits_of(3, 7, 10), LABELS)
    weights = covariance_weights(products)
    inverse = np.linalg.inv(array(products))
    np.testing.assert_allclose(array(weights), inverse.sum(1) / inverse.sum(), rtol=1e-4)
    assert weights.sum().item() == pytest.approx(1.0)
    least = weights @ products @ weights
    for change in ([1.0, -1.0, 0.0], [0.0, 1.0, -1.0]):
        for size in (0.05, -0.05):
            other = weights + size * torch.tensor(change, dtype=torch.float64)
            assert other @ products @ other > least


@pytest.mark.parametrize(
    "products",
    [torch.zeros(3, 3), torch.ones(3, 3), 1e-30 * torch.ones(3, 3), torch.eye(3), 1 + 1e-12 * torch.eye(3)],
)
def test_peers_that_err_alike_or_not_at_all_weigh_the_same(products: Tensor) -> None:
    assert covariance_weights(products.double()).tolist() == pytest.approx([1 / 3] * 3, rel=1e-6)


def test_weights_are_equal_in_the_first_epoch_and_then_measured_on_the_validation_split() -> None:
    scheme = build(*KDCL, "scheme.ensemble=general", "scheme.peers=3").eval()
    node = scheme.nodes["teacher"]
    assert isinstance(node, HeldOutMix)
    batches = [random_batch(seed=5, n=9), random_batch(seed=6, n=4)]
    scheme.before_epoch(lambda: batches)
    assert node.weights.tolist() == pytest.approx([1 / 3] * 3)
    scheme.before_epoch(lambda: batches)
    logits = [torch.cat([scheme.predict(b, [peer])[peer].logits for b in batches]) for peer in PEERS]
    labels = torch.cat([b.labels for b in batches]).tolist()
    products = oracles_online.error_products([array(z) for z in logits], labels)
    products += 1e-6 * np.trace(products) / 3 * np.eye(3)
    inverse = np.linalg.inv(products)
    np.testing.assert_allclose(array(node.weights), inverse.sum(1) / inverse.sum(), rtol=1e-8)
    assert max(node.weights.tolist()) > 0.4
    out = scheme.predict(batches[0], ["teacher"])
    expected = sum(w * array(out[peer].logits) for w, peer in zip(node.weights.tolist(), PEERS, strict=True))
    np.testing.assert_allclose(array(out["teacher"].logits), expected, rtol=1e-12)
    fresh = build(*KDCL, "scheme.ensemble=general", "scheme.peers=3")
    fresh.load_state_dict(scheme.state_dict())
    again = fresh.nodes["teacher"]
    assert isinstance(again, HeldOutMix)
    assert torch.equal(again.weights, node.weights)
    assert again.epochs == 2


def test_a_validation_split_without_a_sample_here_leaves_equal_weights() -> None:
    scheme = build(*KDCL, "scheme.ensemble=general")
    for _ in range(2):
        scheme.before_epoch(lambda: [])
    assert scheme.nodes["teacher"].weights.tolist() == [0.5, 0.5]
