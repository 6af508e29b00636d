"""ONE: branches on one trunk, taught by their gated ensemble."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from kdschemes.core.cross_entropy import cross_entropy
from kdschemes.schemes.online.one import Gate, gated_mean
from tests.losses import oracles
from tests.losses.oracles import Array
from tests.schemes.cases import START, base, batch_for, build, check_refused, random_batch, trained
from tests.schemes.formulas import Case, Formula, Inputs, Reference, Seen, array
from tests.schemes.online import references
from tests.schemes.online.cases import NOT_CUT, RISEN, check_heads, check_learners, check_ramp, randn
from tests.schemes.online.formulas import batch_norm, hard, peers_of, soft_weight, temperature_of

ONE = base("online", "one")
OWN_VIEWS = [*ONE, "scheme.peers=2", "scheme.split=layer1", "scheme.views=independent"]


def expected_gates(seen: list[Array], weight: Array, bias: Array, scale: Array, shift: Array) -> Array:
    """[n, m]: softmax(ReLU(BN(fc))) of the averaged map that each branch reads."""
    scores = np.stack([x.mean((2, 3)) @ weight[i] + bias[i] for i, x in enumerate(seen)], axis=1)
    positive = np.maximum(batch_norm(scores, scale, shift), 0.0)
    return np.stack([oracles.softmax(row) for row in positive])


def expected_ensemble(logits: list[Array], gates: Array) -> Array:
    return np.stack([sum(g * z[n] for g, z in zip(row, logits, strict=True)) for n, row in enumerate(gates)])


def expected_total(seen: Seen) -> float:
    """CE of the gated ensemble and of each branch, and KD from the ensemble to each."""
    gate, logits = seen.scheme.nodes["peers"].gate, peers_of(seen)
    reads = [array(list(seen.out[name].features.values())[-2]) for name in seen.scheme.peers]
    parameters = (gate.fc.weight, gate.fc.bias, gate.norm.weight, gate.norm.bias)
    ensemble = expected_ensemble(logits, expected_gates(reads, *(array(x) for x in parameters)))
    soft = sum(oracles.kd(z, ensemble, temperature=temperature_of(seen)) for z in logits)
    return hard(ensemble, seen.labels) + sum(hard(z, seen.labels) for z in logits) + soft_weight(seen) * soft


def recorded(x: Inputs, p: Case) -> Tensor:
    logits = [x[f"z{k}"] for k in range(3)]
    gate = Gate(x["f"].shape[1], 3).to(x["f"].dtype).train(p["train"])
    gate.fc.load_state_dict({"weight": x["W"], "bias": x["b"]})
    weights = gate(torch.stack([x["f"]] * 3, dim=1))
    ensemble = gated_mean(torch.stack(logits, dim=1), weights)
    soft = [references.shifted_kd(z, ensemble.detach(), float(p["T"])) for z in logits]
    return references.hard(x, "012") + cross_entropy(ensemble, x["y"]) + p["cw"] * torch.stack(soft).sum()


FORMULA: Formula = expected_total
EXACT = {
    "one-own-views": [
        *ONE,
        RISEN,
        "losses.response.temperature=2",
        "scheme.peers=2",
        "scheme.views=independent",
    ],
    "one-soon": [*ONE, "losses.response.ramp_epochs=5"],
}
VARIANTS = {"online-one-own-views": OWN_VIEWS}
REFUSED = NOT_CUT
REFERENCES: dict[str, Reference] = {"ONE": recorded}


def test_who_learns_from_a_term() -> None:
    check_learners(
        ONE,
        {
            "kd/ensemble->peer1": {"trunk", "peer1"},
            "ce/peer1": {"trunk", "peer1"},
            "ce/ensemble": {"trunk", "gate", "peer0", "peer1", "peer2"},
        },
    )


def test_the_soft_terms_rise_over_80_epochs() -> None:
    check_ramp(ONE)


def test_heads_and_their_costs() -> None:
    check_heads(ONE, ["peer0", "peer1", "peer2", "ensemble"], lambda _: 3 * 32 + 3 + 6)


def test_gates_are_weights_and_use_the_running_statistics_for_a_single_sample() -> None:
    torch.manual_seed(0)
    gate = Gate(5, 3).double().train()
    seen = randn(7, 3, 5)
    for _ in range(20):
        weights = gate(seen)
    assert bool((weights > 0).all())
    torch.testing.assert_close(weights.sum(1), torch.ones(7, dtype=torch.float64))
    before = gate.norm.running_mean.clone()
    single = gate(seen[:1])
    assert torch.equal(gate.norm.running_mean, before)
    assert torch.equal(single, gate.eval()(seen)[:1])
    scheme = build(*ONE).train()
    scheme(random_batch(n=1), START).total.backward()
    assert all(p.grad is not None for p in trained(scheme))


def test_the_gate_of_a_branch_reads_what_the_branch_reads() -> None:
    gate = Gate(5, 3).double().eval()
    seen = randn(4, 3, 5)
    other = seen.clone()
    other[:, 1] += 1.0
    raw = torch.einsum("nmd,md->nm", other - seen, gate.fc.weight)
    assert raw.abs().gt(1e-9).any(dim=0).tolist() == [False, True, False]
    one_view = seen[:, :1].expand(4, 3, 5)
    expected = gate.norm(gate.fc(seen[:, 0])).relu().softmax(1)
    torch.testing.assert_close(gate(one_view), expected)
    scheme = build(*OWN_VIEWS).eval()
    batch = batch_for(scheme)
    changed = dataclasses.replace(batch, aux_batches={"view1": random_batch(seed=77)})
    one, two = (scheme.predict(b, ["ensemble"]) for b in (batch, changed))
    assert torch.equal(one["peer0"].logits, two["peer0"].logits)
    assert not torch.equal(one["peer1"].logits, two["peer1"].logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_gated_logits_are_finite_in_any_precision(dtype: torch.dtype, size: float) -> None:
    logits = (size * randn(4, 3, 6)).to(dtype)
    value = gated_mean(logits, torch.full((4, 3), 1 / 3).to(dtype))
    assert value.dtype == torch.float32
    assert bool(value.isfinite().all())
    assert value.abs().max() <= logits.abs().max() * 1.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["losses.feature=hint"], "no features"),
        (["scheme.split=layer9"], "resnet20 'layer9'"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(options: list[str], message: str) -> None:
    check_refused([*ONE, *options], message)
