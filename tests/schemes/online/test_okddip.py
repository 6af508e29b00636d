"""OKDDip: peers that attend to each other teach each other, and their mean teaches a leader."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from kdschemes.core.types import Output
from kdschemes.models import count_parameters
from kdschemes.schemes.online.okddip import PeerAttention, attended, attention
from tests.losses import oracles
from tests.losses.oracles import Array
from tests.schemes.cases import base, build, check_refused, network_of, random_batch, same_state
from tests.schemes.formulas import Case, Formula, Inputs, Reference, Seen, array, last
from tests.schemes.online import references
from tests.schemes.online.cases import NOT_CUT, RISEN, check_heads, check_learners, check_ramp, randn
from tests.schemes.online.formulas import hard, peers_of, soft_weight, temperature_of

OKDDIP = base("online", "okddip")
INDEPENDENT = "scheme.topology=independent"


def expected_targets(logits: list[Array], features: list[Array], query: Array, key: Array) -> list[Array]:
    """Each peer's target: all peers' logits, weighted by softmax over b of q_a . k_b, sample by sample."""
    targets = [np.zeros_like(z) for z in logits]
    for n in range(len(logits[0])):
        keys = [key @ f[n] for f in features]
        for a, f in enumerate(features):
            weights = oracles.softmax(np.array([(query @ f[n]) @ k for k in keys]))
            targets[a][n] = sum(w * z[n] for w, z in zip(weights, logits, strict=True))
    return targets


def expected_total(seen: Seen) -> float:
    """CE of all, KD from its attended target to each peer, and from their mean to the leader."""
    heed, logits, leader = seen.scheme.nodes["attention"], peers_of(seen), seen.logits("leader")
    features = [last(seen.out[name])[1].mean((2, 3)) for name in seen.scheme.peers]
    targets = expected_targets(logits, features, array(heed.query.weight), array(heed.key.weight))
    mean = np.asarray(sum(logits) / len(logits))
    total = 0.0
    for z, target in zip([leader, *logits], [mean, *targets], strict=True):
        soft = oracles.kd(z, target, temperature=temperature_of(seen))
        total += hard(z, seen.labels) + soft_weight(seen) * soft
    return total


def recorded(x: Inputs, p: Case) -> Tensor:
    logits = [x[f"z{k}"] for k in range(3)]
    features = torch.stack([x[f"f{k}"] for k in range(3)], dim=1)
    weights = attention(features @ x["Wq"].mT, features @ x["Wk"].mT)
    targets = attended(weights, torch.stack(logits, dim=1))
    soft = [references.shifted_kd(z, targets[:, a], float(p["T"])) for a, z in enumerate(logits)]
    soft.append(references.shifted_kd(x["z3"], torch.stack(logits).mean(0), float(p["T"])))
    return references.hard(x, "0123") + p["cw"] * torch.stack(soft).sum()


FORMULA: Formula = expected_total
EXACT = {
    "okddip-independent": [*OKDDIP, RISEN, "losses.response.temperature=2", INDEPENDENT, "scheme.views=independent"],
    "okddip-not-detached": [
        *OKDDIP,
        RISEN,
        "losses.response.temperature=2",
        "scheme.detach=false",
        "scheme.reduction=4",
        "scheme.peers=2",
    ],
}
VARIANTS = {"online-okddip-independent": [*OKDDIP, INDEPENDENT, "scheme.peers=2"]}
REFUSED = NOT_CUT
REFERENCES: dict[str, Reference] = {"OKDDip": recorded}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], {"kd/attended1->peer1": {"trunk", "peer1", "attention"}, "kd/ensemble->leader": {"trunk", "leader"}}),
        (
            [INDEPENDENT],
            {"kd/attended1->peer1": {"peer1", "attention"}, "kd/ensemble->leader": {"leader"}, "ce/leader": {"leader"}},
        ),
        (
            [INDEPENDENT, "scheme.detach=false"],
            {
                "kd/attended1->peer1": {"peer0", "peer1", "peer2", "attention"},
                "kd/ensemble->leader": {"peer0", "peer1", "peer2", "leader"},
            },
        ),
    ],
)
def test_who_learns_from_a_term(options: list[str], expected: dict[str, set[str]]) -> None:
    check_learners([*OKDDIP, *options], expected)


def test_the_soft_terms_rise_over_80_epochs() -> None:
    check_ramp(OKDDIP)


def test_heads_and_their_costs() -> None:
    """The leader's branch counts in the ensemble."""
    heads = ["leader", "peer0", "peer1", "peer2", "ensemble"]
    check_heads(OKDDIP, heads, lambda scheme: count_parameters(scheme.nodes["peers"].branches[0]))


def test_attention_sums_to_1_and_equal_features_give_the_mean() -> None:
    weights = attention(randn(4, 3, 2, seed=1), randn(4, 3, 2, seed=2))
    torch.testing.assert_close(weights.sum(2), torch.ones(4, 3, dtype=torch.float64))
    logits, feature = randn(4, 3, 6, seed=3), randn(4, 1, 8, seed=4).expand(4, 3, 8)
    node = PeerAttention(["a", "b", "c"], 8, 1, detach=True).double()
    outputs = {name: Output(logits[:, k], {"last": feature[:, k]}) for k, name in enumerate("abc")}
    for target in node(random_batch(n=4), outputs).values():
        torch.testing.assert_close(target.logits, logits.mean(1))


def test_no_peer_attends_to_the_leader_which_has_its_own_initial_weights() -> None:
    scheme, batch = build(*OKDDIP), random_batch()
    attention_node = scheme.nodes["attention"]
    assert attention_node.reads == ("peer0", "peer1", "peer2") == scheme.nodes["ensemble"].reads
    torch.nn.init.zeros_(scheme.nodes["peers"].branches[3].fc.weight)
    again = build(*OKDDIP).predict(batch, ["attended0", "ensemble"])
    found = scheme.predict(batch, ["attended0", "ensemble"])
    assert all(torch.equal(found[name].logits, again[name].logits) for name in ("attended0", "ensemble"))
    weights = [network_of(build(*OKDDIP), head).fc.weight for head in scheme.heads[:-1]]
    assert not any(torch.equal(weights[0], other) for other in weights[1:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_attended_logits_are_finite_in_any_precision(dtype: torch.dtype, size: float) -> None:
    logits = (size * randn(4, 3, 6)).to(dtype)
    queries = (size * randn(4, 3, 2, seed=1)).to(dtype)
    value = attended(attention(queries, queries), logits)
    assert value.dtype == torch.float32
    assert bool(value.isfinite().all())
    assert value.abs().max() <= logits.abs().max() * 1.01


def test_seeds_are_those_of_the_peers_and_the_run_draws_the_leader() -> None:
    a, b = (build(*OKDDIP, "scheme.seeds=[1,2,3]", f"seed={seed}") for seed in (0, 1))
    for number in range(3):
        weights = [network.branches[number].state_dict() for network in (a.nodes["peers"], b.nodes["peers"])]
        assert same_state(*weights)
    assert not torch.equal(network_of(a, "leader").fc.weight, network_of(b, "leader").fc.weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["losses.relation=rkd"], "no features"),
        (["scheme.reduction=65"], "scheme.reduction=65 .*64 channels"),
        ([INDEPENDENT, "scheme.peers=[resnet20,convnet]"], r"\[64, 256\]"),
        (["scheme.lr_multipliers=[1,1,1]"], "scheme.lr_multipliers .*scheme.topology=independent"),
        (["scheme.seeds=[1,2,3,4]"], "scheme.seeds .*4 .* 3 peers"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(options: list[str], message: str) -> None:
    check_refused([*OKDDIP, *options], message)
