"""Peers of their own: rates, seeds and views of each, errors, and who teaches whom."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from pathlib import Path

import pytest
import torch

from kdschemes.config.data import Digits
from kdschemes.core.distillation import Distillation
from kdschemes.core.frozen import Frozen
from kdschemes.core.nodes import Network
from kdschemes.data import open_data
from kdschemes.errors import UserError
from kdschemes.models import save_weights
from kdschemes.training.optim import build_optimizer, rate_schedule, set_rate
from tests.schemes.cases import (
    OFFLINE,
    ONLINE,
    START,
    base,
    batch_for,
    build,
    configure,
    in_double,
    network_of,
    random_batch,
    same_state,
)
from tests.schemes.online.cases import PEERS
from tests.schemes.online.variants import KDCL, MEAN, SWITOKD


def test_rates_multiply_the_learning_rate_of_each_peer() -> None:
    config = configure(*ONLINE, "scheme.lr_multipliers=[1,0.25]", "optim.lr=0.2", "optim.weight_decay=0")
    scheme, plain = build(*ONLINE, "scheme.lr_multipliers=[1,0.25]"), build(*ONLINE)
    steps = []
    for one in (scheme, plain):
        optimizer = build_optimizer(config.optim, one.parameter_groups(), one.lr_multipliers)
        set_rate(optimizer, rate_schedule(config.optim), START)
        before = {peer: [p.detach().clone() for p in one.nodes[peer].parameters()] for peer in ("peer0", "peer1")}
        if one is scheme:
            assert {group["name"]: group["lr"] for group in optimizer.param_groups} == {"peer0": 0.2, "peer1": 0.05}
        one(random_batch(), START).total.backward()
        optimizer.step()
        steps.append(
            {peer: [p - q for p, q in zip(one.nodes[peer].parameters(), before[peer], strict=True)] for peer in before}
        )
    for peer, factor in (("peer0", 1.0), ("peer1", 0.25)):
        for with_rate, without in zip(steps[0][peer], steps[1][peer], strict=True):
            torch.testing.assert_close(with_rate, factor * without, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("topology", ["independent", "shared_trunk"])
def test_equal_seeds_give_equal_weights_whatever_the_seed_of_the_run(topology: str) -> None:
    overrides = [*ONLINE, "scheme.peers=3", f"scheme.topology={topology}", "scheme.seeds=[4,4,5]"]
    scheme, other = build(*overrides), build(*overrides, "seed=7")
    networks = [network_of(scheme, peer) for peer in PEERS]
    assert same_state(networks[0], networks[1])
    assert not same_state(networks[0], networks[2])
    assert all(same_state(network_of(other, peer), network) for peer, network in zip(PEERS, networks, strict=True))


def test_peers_go_on_from_weights_of_their_own(tmp_path: Path) -> None:
    """Peers may be trained already, each another network; a leader that is no peer starts afresh."""
    trained = build(*ONLINE, "scheme.peers=[convnet,resnet20]", "seed=5", dtype=torch.float32)
    paths = [tmp_path / name for name in ("a", "b")]
    for path, peer in zip(paths, ("peer0", "peer1"), strict=True):
        save_weights(network_of(trained, peer), path)
    start = f"model.checkpoint=[{paths[0]},{paths[1]}]"
    again = build(*ONLINE, "scheme.peers=[convnet,resnet20]", start, dtype=torch.float32)
    for peer in ("peer0", "peer1"):
        assert same_state(network_of(again, peer), network_of(trained, peer))
    save_weights(network_of(trained, "peer0"), paths[1])
    leading = [*base("online", "okddip", "convnet"), "scheme.topology=independent", "scheme.peers=2"]
    led, fresh = build(*leading, start, dtype=torch.float32), build(*leading, dtype=torch.float32)
    assert same_state(network_of(led, "peer1"), network_of(trained, "peer0"))
    assert same_state(network_of(led, "leader"), network_of(fresh, "leader"))


@pytest.mark.parametrize("topology", ["independent", "shared_trunk"])
@pytest.mark.parametrize("method", ["dml", "codistillation", "kdcl"])
def test_peers_see_views_of_their_own_in_training_and_the_same_images_in_evaluation(method: str, topology: str) -> None:
    overrides = [*base("online", method), "scheme.peers=3", "scheme.seeds=[1,1,1]", f"scheme.topology={topology}"]
    own, shared = build(*overrides, "scheme.views=independent").eval(), build(*overrides, "scheme.views=shared").eval()
    assert (own.aux_batches, shared.aux_batches) == (("view1", "view2"), ())
    data = open_data(Digits(), seed=0, device=torch.device("cpu"))
    (batch,) = next(
        data.train_steps(
            0, batch_size=8, grad_accum_steps=1, rank=0, world=1, drop_last=True, aux_batches=own.aux_batches
        )
    )
    batch = in_double(batch)
    for scheme, distinct in ((own, True), (shared, False)):
        logits = [output.logits for name, output in scheme.predict(batch, PEERS).items() if name in PEERS]
        for a, b in itertools.combinations(logits, 2):
            assert torch.equal(a, b) is not distinct
    plain = dataclasses.replace(batch, aux_batches={})
    first, *others = (own.predict(plain, PEERS)[peer].logits for peer in PEERS)
    assert all(torch.equal(first, other) for other in others)


def test_by_default_only_kdcl_gives_each_peer_its_own_view() -> None:
    assert build(*KDCL).aux_batches == ("view1",)
    assert build(*MEAN).aux_batches == build(*ONLINE).aux_batches == ()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([*ONLINE, "scheme.lr_multipliers=[1]"], "scheme.lr_multipliers has 1 entries for 2 peers"),
        ([*ONLINE, "scheme.lr_multipliers=[1,1,1]"], "scheme.lr_multipliers has 3 entries for 2 peers"),
        ([*ONLINE, "scheme.seeds=[1,2,3]"], "scheme.seeds has 3 entries for 2 peers"),
        ([*MEAN, "scheme.peers=[convnet,resnet20,convnet]", "scheme.seeds=[1,2]"], "2 entries for 3 peers"),
        ([*KDCL, "scheme.peers=4", "scheme.lr_multipliers=[1,2]"], "scheme.lr_multipliers has 2 entries for 4 peers"),
        (
            [*ONLINE, "scheme.topology=shared_trunk", "scheme.lr_multipliers=[1,2]"],
            "peers on one trunk share its learning rate",
        ),
        ([*ONLINE, "model.checkpoint=[a,b,c]"], "model.checkpoint has 3 entries for 2 peers"),
        (
            [*ONLINE, "scheme.topology=shared_trunk", "model.checkpoint=[a,b]"],
            "peers on one trunk start from one network",
        ),
        ([*SWITOKD, "model.checkpoint=[a,b]"], "model.checkpoint has 2 entries, but only peers"),
        ([*ONLINE, "model.checkpoint=[a]"], "model.checkpoint=.* is not allowed"),
        ([*ONLINE, "scheme.topology=shared_trunk", "scheme.update=sequential"], "peers on one trunk step together"),
        (
            [*SWITOKD, "scheme.lr_multipliers=[1]"],
            r"scheme.lr_multipliers has 1 entries for 2 networks: give \[student, big\]",
        ),
        ([*SWITOKD, "scheme.lr_multipliers=[1,2,3]"], "scheme.lr_multipliers has 3 entries for 2 networks"),
        ([*SWITOKD, "scheme.large_model=nothing"], "unknown model 'nothing'"),
        ([*KDCL, "scheme.ensemble=general", "data.val_fraction=0"], "set data.val_fraction above 0"),
        ([*KDCL, "data.mixup=0.2"], "mixup"),
        ([*SWITOKD, "data.cutmix=0.2"], "cutmix"),
        ([*ONLINE, "scheme.peers=1"], "scheme.peers"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build(*overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["dml", "codistillation", "kdcl", "switokd"])
def test_each_term_teaches_its_target_alone(method: str) -> None:
    scheme = build(*base("online", method)).train()
    batch = batch_for(scheme)
    outputs = scheme.predict(batch, {name for node in scheme.nodes.values() for name in node.provides})
    for term in scheme.terms:
        value = term(outputs, batch)
        for name, group in scheme.parameter_groups().items():
            if value.requires_grad:
                gradients = torch.autograd.grad(value, group, retain_graph=True, allow_unused=True)
                reached = any(g is not None and bool(g.any()) for g in gradients)
                assert reached is (name == term.target), (term.name, name)
            else:
                assert term.name == "learning/big"


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


@pytest.mark.parametrize("method", ["dml", "codistillation", "kdcl"])
def test_peers_are_reported_in_order_with_their_mean_logits_last(method: str) -> None:
    scheme, batch = build(*base("online", method), "scheme.peers=3").eval(), random_batch()
    assert scheme.heads == (*PEERS, "ensemble")
    assert scheme.peers == PEERS
    assert scheme.teacher is None
    out = scheme.predict(batch, scheme.heads)
    mean = sum(out[peer].logits for peer in PEERS) / 3
    torch.testing.assert_close(out["ensemble"].logits, mean, rtol=1e-12, atol=1e-14)
