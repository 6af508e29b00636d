"""Collaborative learning: heads on one trunk, each taught by the mean of the others."""

from __future__ import annotations

import numpy as np
import torch

from kdschemes.core.nodes import SharedTrunk
from tests.losses import oracles
from tests.losses.oracles import Array
from tests.schemes.cases import START, base, build, check_refused, random_batch
from tests.schemes.formulas import Formula, Seen
from tests.schemes.online.cases import NOT_CUT, check_heads, check_learners
from tests.schemes.online.formulas import hard, peers_of, temperature_of

CLILR = base("online", "clilr")


def mean_of_others(logits: list[Array], k: int) -> Array:
    others = [z for j, z in enumerate(logits) if j != k]
    return np.asarray(sum(others) / len(others))


def expected_total(seen: Seen) -> float:
    logits, alpha, total = peers_of(seen), seen.config.scheme.alpha, 0.0
    for k, z in enumerate(logits):
        soft = alpha * oracles.kd(z, mean_of_others(logits, k), temperature=temperature_of(seen))
        total += (1 - alpha) * hard(z, seen.labels) + soft
    return total


FORMULA: Formula = expected_total
EXACT = {"clilr-other": [*CLILR, "scheme.peers=2", "scheme.alpha=0.8", "losses.response.temperature=1.5"]}
VARIANTS = {
    "online-clilr-hint": [
        *CLILR,
        "scheme.peers=3",
        "scheme.split=layer2",
        "losses.feature=hint",
        "losses.relation=rkd",
    ],
}
REFUSED = NOT_CUT


def test_who_learns_from_a_term() -> None:
    check_learners(CLILR, {"kd/others1->peer1": {"trunk", "peer1"}, "ce/peer2": {"trunk", "peer2"}})


def test_heads_and_their_costs() -> None:
    check_heads(CLILR, ["peer0", "peer1", "peer2", "peer3", "ensemble"])


def test_the_gradient_of_the_trunk_is_divided_by_the_number_of_heads() -> None:
    scheme, batch = build(*CLILR), random_batch()
    node = scheme.nodes["peers"]
    assert isinstance(node, SharedTrunk)
    gradients = []
    for factor in (node.trunk_gradient, 1.0):
        node.trunk_gradient = factor
        scheme.zero_grad()
        scheme(batch, START).total.backward()
        gradients.append({name: p.grad.clone() for name, p in node.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() == {name for name, _ in node.named_parameters()}
    for name, whole in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], whole / 4 if name.startswith("trunk") else whole)


def test_without_a_response_it_is_plain_supervision_of_the_heads() -> None:
    weights = build(*CLILR, "losses.response=none")(random_batch(), START).weights
    assert weights == {f"ce/peer{k}": 1.0 for k in range(4)}


def test_seeds_of_another_number_than_the_heads_are_refused() -> None:
    check_refused([*CLILR, "scheme.seeds=[1]"], "scheme.seeds .*1 .* 4 peers")
