"""Peers, independent or on one trunk: their rates, seeds, checkpoints, views and heads, and whom a term teaches."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch
from torch import nn

from kdschemes.config.data import Digits
from kdschemes.config.schemes import SCHEMES
from kdschemes.data import open_data
from kdschemes.models import save_weights
from kdschemes.training.optim import build_optimizer, rate_schedule, set_rate
from tests.schemes.cases import (
    ARCHITECTURES,
    ONLINE,
    START,
    base,
    batch_for,
    build,
    check_refused,
    configure,
    in_double,
    network_of,
    random_batch,
    same_state,
    trained,
)
from tests.schemes.online.cases import PEERS, RISEN


def test_rates_multiply_the_learning_rate_of_each_peer() -> None:
    config = configure(
        *ONLINE, "scheme.lr_multipliers=[1,0.25]", "optim.lr=0.2", "optim.weight_decay=0", "optim.warmup_epochs=0"
    )
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


def test_peers_start_from_their_own_checkpoints(tmp_path: Path) -> None:
    """Each peer may be a different trained network; a leader, which is no peer, starts from fresh weights."""
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
def test_peers_see_their_own_views_in_training_and_the_same_images_in_evaluation(method: str, topology: str) -> None:
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
    assert build(*base("online", "kdcl")).aux_batches == ("view1",)
    assert build(*base("online", "codistillation")).aux_batches == build(*ONLINE).aux_batches == ()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["scheme.lr_multipliers=[1]"], "scheme.lr_multipliers .*1 .* 2 peers"),
        (["scheme.lr_multipliers=[1,1,1]"], "scheme.lr_multipliers .*3 .* 2 peers"),
        (["scheme.seeds=[1,2,3]"], "scheme.seeds .*3 .* 2 peers"),
        (["method=codistillation", "scheme.peers=[convnet,resnet20,convnet]", "scheme.seeds=[1,2]"], "2 .* 3 peers"),
        (["method=kdcl", "scheme.peers=4", "scheme.lr_multipliers=[1,2]"], "scheme.lr_multipliers .*2 .* 4 peers"),
        (["scheme.topology=shared_trunk", "scheme.lr_multipliers=[1,2]"], "lr_multipliers .*topology=independent"),
        (["model.checkpoint=[a,b,c]"], "model.checkpoint .*3 .* 2 peers"),
        (["scheme.topology=shared_trunk", "model.checkpoint=[a,b]"], "model.checkpoint .*one trunk"),
        (["scheme.split=layer2"], "scheme.split .*scheme.topology=shared_trunk"),
        (["scheme.topology=shared_trunk", "scheme.peers=[resnet20,convnet]"], "one architecture.*resnet20, convnet"),
        (["scheme.topology=shared_trunk", "scheme.split=layer1", "model=convnet"], "stage of convnet"),
        (["scheme.topology=shared_trunk", "train.ema=0.9"], "train.ema"),
        (["model.checkpoint=[a]"], "model.checkpoint=.* is not allowed"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(overrides: list[str], message: str) -> None:
    check_refused([*ONLINE, *overrides], message)


@pytest.mark.parametrize("method", ["dml", "codistillation", "kdcl", "switokd"])
def test_each_term_teaches_only_its_target(method: str) -> None:
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


@pytest.mark.parametrize("method", ["dml", "codistillation", "kdcl"])
def test_peers_are_reported_in_order_with_their_mean_logits_last(method: str) -> None:
    scheme, batch = build(*base("online", method), "scheme.peers=3").eval(), random_batch()
    assert scheme.heads == (*PEERS, "ensemble")
    assert scheme.peers == PEERS
    assert scheme.teacher is None
    out = scheme.predict(batch, scheme.heads)
    mean = sum(out[peer].logits for peer in PEERS) / 3
    torch.testing.assert_close(out["ensemble"].logits, mean, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("method", SCHEMES["online"])
def test_bf16_and_large_logits_give_finite_losses_and_gradients(method: str) -> None:
    scheme = build(*base("online", method), RISEN, dtype=torch.float32).train()
    for module in scheme.modules():
        if isinstance(module, nn.Linear):
            module.weight.data.mul_(1e4)
    with torch.autocast("cpu", torch.bfloat16):
        result = scheme(batch_for(scheme, dtype=torch.float32), START)
    result.total.backward()
    assert max(output.logits.abs().max().item() for output in result.outputs.values()) > 1e3
    assert all(value.isfinite() for value in result.losses.values())
    assert all(bool(p.grad.isfinite().all()) for p in trained(scheme) if p.grad is not None)


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name.startswith("timm/")])
@pytest.mark.parametrize("method", ["okddip", "ffl", "pcl"])
def test_independent_peers_may_have_any_architecture(method: str, architecture: str) -> None:
    data_spec = ARCHITECTURES[architecture]
    scheme = build(*base("online", method, architecture), "scheme.topology=independent", data_spec=data_spec).train()
    scheme(batch_for(scheme, data_spec), START).total.backward()
    assert all(p.grad is not None for p in trained(scheme))
    assert not [n for n, p in scheme.named_parameters() if p.grad is not None and p.dim() > 1 and not p.grad.any()]


def test_a_shared_trunk_shares_all_before_the_split_and_nothing_after() -> None:
    scheme = build(*ONLINE, "scheme.topology=shared_trunk", "scheme.split=layer2").eval()
    features = scheme.predict(batch_for(scheme), ["peer0", "peer1"])
    assert torch.equal(features["peer0"].features["layer1"], features["peer1"].features["layer1"])
    assert not torch.equal(features["peer0"].features["layer2"], features["peer1"].features["layer2"])
    assert list(features["peer1"].features) == ["layer1", "layer2", "layer3"]
    whole = build(*ONLINE)
    assert same_state(network_of(whole, "peer0"), network_of(scheme, "peer0"))
    own, stem = network_of(whole, "peer1").state_dict(), network_of(scheme, "peer1").state_dict()
    for name, tensor in stem.items():
        source = own if name.startswith(("layer2", "layer3", "fc")) else network_of(whole, "peer0").state_dict()
        assert torch.equal(tensor, source[name]), name
