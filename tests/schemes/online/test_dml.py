"""Deep mutual learning: every peer teaches every other, in a joint step or in turn."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kdschemes.config.data import Digits
from kdschemes.core.distillation import Distillation
from kdschemes.core.frozen import Frozen
from kdschemes.core.nodes import Network
from kdschemes.data import open_data
from kdschemes.losses.response.kd import kd
from tests.losses import oracles
from tests.schemes.cases import (
    OFFLINE,
    ONLINE,
    START,
    build,
    check_refused,
    in_double,
    network_of,
    random_batch,
    state_of,
    trained,
)
from tests.schemes.formulas import Case, Formula, Inputs, Reference, Seen, array
from tests.schemes.online import references
from tests.schemes.online.cases import PEERS, sgd, step
from tests.schemes.online.formulas import peers_of, temperature_of

SEQUENTIAL = [*ONLINE, "scheme.peers=3", "scheme.update=sequential"]


def expected_total(seen: Seen) -> float:
    return oracles.dml(peers_of(seen), seen.labels, temperature=temperature_of(seen))


def recorded(x: Inputs, p: Case) -> Tensor:
    """OKDDip's code: from each other peer, or from their mean."""
    logits = [x[f"z{k}"] for k in range(p["n"])]
    total = references.hard(x, "012"[: p["n"]])
    for k, z in enumerate(logits):
        others = [other for j, other in enumerate(logits) if j != k]
        targets = others if p["pair"] else [torch.stack(others).mean(0)]
        total = total + torch.stack([references.shifted_kd(z, target, float(p["T"])) for target in targets]).mean()
    return total


FORMULA: Formula = expected_total
EXACT = {
    "dml-other": [*ONLINE, "scheme.peers=3", "losses.response.temperature=3"],
    "dml-shared-trunk": [*ONLINE, "scheme.topology=shared_trunk", "scheme.peers=3"],
    "dml-own-views": [*ONLINE, "scheme.topology=shared_trunk", "scheme.peers=3", "scheme.views=independent"],
}
VARIANTS = {
    "online-dml-three-peers": [*ONLINE, "scheme.peers=3"],
    "online-dml-mixed-peers": [*ONLINE, "scheme.peers=[resnet20,convnet]", "losses.feature=hint"],
    "online-dml-shared-trunk": [*ONLINE, "scheme.topology=shared_trunk", "scheme.peers=3"],
    "online-dml-hint-rkd": [*ONLINE, "losses.feature=hint", "losses.relation=rkd"],
    "online-dml-sequential": SEQUENTIAL,
    "online-dml-at-fsp": [*ONLINE, "losses.feature=at", "losses.relation=fsp"],
}
REFERENCES: dict[str, Reference] = {
    "DML.chxy95": lambda x, p: references.total(x, "method=dml"),
    "DML.KDZoo": lambda x, p: kd(x["z0"], x["z1"], temperature=float(p["T"])),
    "DML.OKDDip_pair": recorded,
    "DML.OKDDip_ensemble": recorded,
}


def test_sequential_peers_learn_from_the_updated_others() -> None:
    """Against a loop over networks with an optimizer each, momentum and weight decay included."""
    scheme = build(*SEQUENTIAL).train()
    networks = [copy.deepcopy(network_of(scheme, peer)) for peer in PEERS]
    optimizers = [sgd(network.parameters()) for network in networks]
    optimizer = sgd(trained(scheme))
    for seed in range(3):
        batch = random_batch(seed=seed)
        for k, network in enumerate(networks):
            step(scheme, optimizer, [batch], phase=k)
            logits = [other(batch.images) for other in networks]
            loss = functional.cross_entropy(logits[k], batch.labels)
            for j in {0, 1, 2} - {k}:
                log_p, log_q = logits[j].detach().log_softmax(1), logits[k].log_softmax(1)
                loss = loss + 0.5 * (log_p.exp() * (log_p - log_q)).sum(1).mean()
            network.zero_grad()
            loss.backward()
            optimizers[k].step()
            for peer, other in zip(PEERS, networks, strict=True):
                for name, tensor in network_of(scheme, peer).state_dict().items():
                    torch.testing.assert_close(tensor, other.state_dict()[name], rtol=1e-9, atol=1e-12)


def test_a_phase_leaves_the_other_peers_weights_and_momentum_unchanged() -> None:
    scheme = build(*SEQUENTIAL).train()
    optimizer = sgd(trained(scheme))
    groups = scheme.parameter_groups()
    for phase in (0, 1, 2, 0, 1, 2):
        weights = {name: [p.detach().clone() for p in group] for name, group in groups.items()}
        momentum = copy.deepcopy(optimizer.state_dict()["state"])
        step(scheme, optimizer, [random_batch(seed=phase)], phase)
        assert scheme.skipped_nodes(phase) >= set(PEERS) - {f"peer{phase}"}
        number = itertools.count()
        for name, group in groups.items():
            moved = name == f"peer{phase}"
            for before, after in zip(weights[name], group, strict=True):
                assert torch.equal(before, after) is not moved
                place = next(number)
                if place in momentum:
                    now = optimizer.state_dict()["state"][place]["momentum_buffer"]
                    assert torch.equal(momentum[place]["momentum_buffer"], now) is not moved


def test_sequential_updates_differ_from_a_joint_step_only_after_the_first_phase() -> None:
    joint, batch = build(*ONLINE, "scheme.peers=3"), random_batch()
    sequential = build(*SEQUENTIAL)
    for scheme in (joint, sequential):
        optimizer = sgd(trained(scheme))
        for phase in range(max(1, len(scheme.phases))):
            step(scheme, optimizer, [batch], phase)
    assert joint.phases == ()
    for peer, same in zip(PEERS, (True, False, False), strict=True):
        pairs = list(zip(joint.nodes[peer].parameters(), sequential.nodes[peer].parameters(), strict=True))
        assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-15) for a, b in pairs) is same


def test_a_phase_accumulates_micro_batches() -> None:
    """With batch norm frozen, a phase on 13 samples equals one on micro-batches of 5, 4 and 4."""
    data = open_data(Digits(), seed=0, device=torch.device("cpu"))
    states = []
    for grad_accum_steps in (1, 3):
        scheme = build(*SEQUENTIAL).eval()
        optimizer = sgd(trained(scheme))
        batches = next(
            data.train_steps(0, batch_size=13, grad_accum_steps=grad_accum_steps, rank=0, world=1, drop_last=False)
        )
        for phase in range(3):
            step(scheme, optimizer, [in_double(batch) for batch in batches], phase)
        states.append(state_of(scheme))
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-9, atol=1e-12)


def test_a_phase_counts_only_the_terms_of_its_peer() -> None:
    scheme, batch = build(*SEQUENTIAL), random_batch()
    peers = [array(output.logits) for output in scheme.predict(batch, PEERS).values()]
    labels = batch.labels.tolist()
    for phase, peer in enumerate(PEERS):
        result = scheme(batch, START, phase)
        others = [z for k, z in enumerate(peers) if k != phase]
        expected = oracles.supervised([peers[phase]], labels, smoothing=0.0)
        expected += sum(oracles.kd(peers[phase], z, temperature=1.0) for z in others) / 2
        assert result.total.item() == pytest.approx(expected, rel=1e-10)
        assert {name for name, weight in result.weights.items() if weight} == {
            term.name for term in scheme.terms if term.target == peer
        }


def test_mutual_learning_from_one_frozen_peer_is_offline_distillation() -> None:
    offline = build(*OFFLINE, "scheme.alpha=1", "scheme.ce_weight=1", "losses.response.temperature=1").train()
    online = build(*ONLINE)
    teacher = Frozen("peer1", copy.deepcopy(network_of(offline, "teacher")))
    student = Network("peer0", copy.deepcopy(network_of(offline, "student")))
    mutual = Distillation({"peer0": student, "peer1": teacher}, list(online.terms), ["peer0"]).train()
    assert mutual.parameter_groups().keys() == {"peer0"}
    batch = random_batch()
    for scheme in (offline, mutual):
        scheme(batch, START).total.backward()
    pairs = zip(network_of(offline, "student").parameters(), student.network.parameters(), strict=True)
    assert all(p.grad is not None and torch.equal(p.grad, q.grad) for p, q in pairs)


def test_peers_on_one_trunk_cannot_be_updated_in_turn() -> None:
    overrides = [*ONLINE, "scheme.topology=shared_trunk", "scheme.update=sequential"]
    check_refused(overrides, "scheme.update=sequential .*scheme.topology=independent")


def test_one_peer_is_refused() -> None:
    check_refused([*ONLINE, "scheme.peers=1"], "scheme.peers")
