"""KDCL: a mix of the peers, made with the labels or weighted by held-out errors, teaches each peer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kdschemes.losses.response.kd import kd
from kdschemes.schemes.online.kdcl import HeldOutMix, covariance_weights, error_products, minlogit, naive
from tests.losses import oracles
from tests.losses.oracles import Array
from tests.schemes.cases import base, build, check_refused, random_batch
from tests.schemes.formulas import Case, Formula, Inputs, Reference, Seen, array
from tests.schemes.online.cases import LABELS, PEERS, logits_of
from tests.schemes.online.formulas import linear_mix, peers_of, taught, temperature_of

KDCL = base("online", "kdcl")


def expected_naive(peers: list[Array], labels: list[int]) -> Array:
    rows = []
    for n, label in enumerate(labels):
        losses = [-oracles.log_softmax(z[n])[label] for z in peers]
        rows.append(peers[losses.index(min(losses))][n])
    return np.stack(rows)


def expected_minlogit(peers: list[Array], labels: list[int]) -> Array:
    out = np.zeros_like(peers[0])
    for n, label in enumerate(labels):
        for c in range(out.shape[1]):
            out[n, c] = min(z[n, c] - z[n, label] for z in peers)
    return out


def weighted(peers: list[Array], weights: list[float]) -> Array:
    return np.asarray(sum(w * z for w, z in zip(weights, peers, strict=True)))


def expected_error_products(peers: list[Array], labels: list[int]) -> Array:
    """The sum over samples of <p_i - y, p_j - y>."""
    products = np.zeros((len(peers), len(peers)))
    for n, label in enumerate(labels):
        errors = []
        for z in peers:
            error = oracles.softmax(z[n])
            error[label] -= 1.0
            errors.append(error)
        for i, a in enumerate(errors):
            for j, b in enumerate(errors):
                products[i, j] += math.fsum(a * b)
    return products


def expected_total(seen: Seen) -> float:
    peers, kind = peers_of(seen), seen.config.scheme.ensemble
    if kind == "general":
        teacher = weighted(peers, list(array(seen.scheme.nodes["teacher"].weights)))
    elif kind == "linear":
        teacher = linear_mix(peers, seen.labels)[0]
    else:
        teacher = {"naive": expected_naive, "minlogit": expected_minlogit}[kind](peers, seen.labels)
    return taught(peers, [teacher] * len(peers), seen.labels, temperature=temperature_of(seen))


def recorded(x: Inputs, p: Case) -> Tensor:
    """The reference's target is not a constant."""
    peers = [x[f"z{k}"] for k in range(4)]
    target = minlogit(torch.stack(peers), x["y"])
    return torch.stack([kd(z, target, temperature=float(p["T"]), reduction="mean") for z in peers]).sum()


FORMULA: Formula = expected_total
EXACT = {
    "kdcl-naive": [*KDCL, "scheme.ensemble=naive", "scheme.peers=3"],
    "kdcl-linear": [*KDCL, "scheme.ensemble=linear", "losses.response.temperature=4"],
    "kdcl-minlogit": [*KDCL, "scheme.peers=3", "scheme.topology=shared_trunk"],
    "kdcl-general": [*KDCL, "scheme.ensemble=general", "scheme.peers=3"],
}
VARIANTS = {
    "online-kdcl-naive": [*KDCL, "scheme.ensemble=naive"],
    "online-kdcl-linear": [*KDCL, "scheme.ensemble=linear", "scheme.peers=3", "scheme.views=shared"],
    "online-kdcl-general": [*KDCL, "scheme.ensemble=general", "losses.feature=hint"],
}
REFERENCES: dict[str, Reference] = {"KDCL_minlogit": recorded}


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


def test_naive_takes_each_samples_best_peer_and_minlogit_each_classs_least_margin() -> None:
    logits = logits_of(3, 7, 10)
    peers = [array(z) for z in logits]
    np.testing.assert_array_equal(array(naive(logits, LABELS)), expected_naive(peers, LABELS.tolist()))
    np.testing.assert_array_equal(array(minlogit(logits, LABELS)), expected_minlogit(peers, LABELS.tolist()))
    assert torch.equal(naive(torch.cat([logits[:1], logits[:1]]), LABELS), logits[0])


def test_errors_on_held_out_samples_are_those_of_explicit_loops() -> None:
    logits = logits_of(3, 7, 10)
    expected = expected_error_products([array(z) for z in logits], LABELS.tolist())
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
def test_peers_with_the_same_errors_or_none_have_the_same_weight(products: Tensor) -> None:
    assert covariance_weights(products.double()).tolist() == pytest.approx([1 / 3] * 3, rel=1e-6)


def test_weights_are_equal_in_the_first_epoch_and_then_measured_on_the_validation_split() -> None:
    scheme = build(*KDCL, "scheme.ensemble=general", "scheme.peers=3").eval()
    node = scheme.nodes["teacher"]
    assert isinstance(node, HeldOutMix)
    batches = [random_batch(seed=5, n=9), random_batch(seed=6, n=4)]
    scheme.before_epoch(0, lambda: batches)
    assert node.weights.tolist() == pytest.approx([1 / 3] * 3)
    scheme.before_epoch(1, lambda: batches)
    logits = [torch.cat([scheme.predict(b, [peer])[peer].logits for b in batches]) for peer in PEERS]
    labels = torch.cat([b.labels for b in batches]).tolist()
    products = expected_error_products([array(z) for z in logits], labels)
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


def test_a_process_without_validation_samples_keeps_equal_weights() -> None:
    scheme = build(*KDCL, "scheme.ensemble=general")
    for epoch in range(2):
        scheme.before_epoch(epoch, lambda: [])
    assert scheme.nodes["teacher"].weights.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["scheme.ensemble=general", "data.val_fraction=0", "data.train_fraction=1"],
            "scheme.ensemble=general .*data.val_fraction",
        ),
        (["data.mixup=0.2"], "mixup"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(options: list[str], message: str) -> None:
    check_refused([*KDCL, *options], message)
