"""Online methods with branches: who learns from which term, gates, attention, averages, refusals, heads and costs."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from kdschemes.config.data import Digits
from kdschemes.core.averages import Ema
from kdschemes.core.distillation import Distillation
from kdschemes.core.nodes import SharedTrunk
from kdschemes.core.types import Batch, Output, Progress
from kdschemes.data import open_data
from kdschemes.errors import UserError
from kdschemes.evaluation.cost import head_costs
from kdschemes.models import count_parameters
from kdschemes.schemes.online.okddip import PeerAttention, attended, attention
from kdschemes.schemes.online.one import Gate, GatedEnsemble, gated_mean
from tests.schemes.cases import (
    ARCHITECTURES,
    START,
    VARIANTS,
    base,
    batch_for,
    build,
    network_of,
    random_batch,
    same_state,
    trained,
)

CLILR, ONE, OKDDIP, FFL, PCL = (base("online", method) for method in ("clilr", "one", "okddip", "ffl", "pcl"))
METHODS = {"clilr": CLILR, "one": ONE, "okddip": OKDDIP, "ffl": FFL, "pcl": PCL}
RISEN = "losses.response.schedule=constant"
HEADS = {
    "clilr": ["peer0", "peer1", "peer2", "peer3", "ensemble"],
    "one": ["peer0", "peer1", "peer2", "ensemble"],
    "okddip": ["leader", "peer0", "peer1", "peer2", "ensemble"],
    "ffl": ["peer0", "peer1", "fused", "ensemble"],
    "pcl": ["peer0", "peer1", "peer2", "ensemble", "peer0/ema", "peer1/ema", "peer2/ema"],
}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def learners(scheme: Distillation, term: str, batch: Batch) -> set[str]:
    """Return the modules that one term's gradient reaches: nodes, and of one on a trunk its parts."""
    scheme.zero_grad()
    outputs = scheme.predict(batch, {name for other in scheme.terms for name in other.reads})
    (found,) = [other for other in scheme.terms if other.name == term]
    found(outputs, batch).backward()
    reached = set()
    for name, node in scheme.nodes.items():
        parts: dict[str, nn.Module] = {name: node}
        if isinstance(node, SharedTrunk):
            branches = zip(node.provides, node.branches, strict=False)
            parts = {"trunk": node.trunk} | dict(branches)
            parts |= {"gate": node.gate} if isinstance(node, GatedEnsemble) else {}
        reached |= {
            part for part, module in parts.items() if any(p.grad is not None and p.grad.any() for p in trained(module))
        }
    return reached


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (CLILR, {"kd/others1->peer1": {"trunk", "peer1"}, "ce/peer2": {"trunk", "peer2"}}),
        (
            ONE,
            {
                "kd/ensemble->peer1": {"trunk", "peer1"},
                "ce/peer1": {"trunk", "peer1"},
                "ce/ensemble": {"trunk", "gate", "peer0", "peer1", "peer2"},
            },
        ),
        (
            OKDDIP,
            {
                "kd/attended1->peer1": {"trunk", "peer1", "attention"},
                "kd/ensemble->leader": {"trunk", "leader"},
            },
        ),
        (
            [*OKDDIP, "scheme.topology=independent"],
            {"kd/attended1->peer1": {"peer1", "attention"}, "kd/ensemble->leader": {"leader"}, "ce/leader": {"leader"}},
        ),
        (
            [*OKDDIP, "scheme.topology=independent", "scheme.detach=false"],
            {
                "kd/attended1->peer1": {"peer0", "peer1", "peer2", "attention"},
                "kd/ensemble->leader": {"peer0", "peer1", "peer2", "leader"},
            },
        ),
        (
            FFL,
            {
                "kd/fused->peer1": {"trunk", "peer1"},
                "kd/ensemble->fused": {"trunk", "peer0", "peer1", "fused"},
                "ce/fused": {"trunk", "peer0", "peer1", "fused"},
            },
        ),
        (
            PCL,
            {
                "kd/ensemble->peer1": {"trunk", "peer1"},
                "kd/peer0/ema->peer1": {"trunk", "peer1"},
                "ce/ensemble": {"trunk", "peer0", "peer1", "peer2", "ensemble"},
            },
        ),
    ],
)
def test_who_learns_from_a_term(overrides: list[str], expected: dict[str, set[str]]) -> None:
    scheme = build(*overrides).train()
    batch = batch_for(scheme)
    assert {term: learners(scheme, term, batch) for term in expected} == expected


def test_the_fused_classifier_learns_through_its_features_and_not_through_the_mean_that_teaches_it() -> None:
    scheme, batch = build(*FFL, RISEN), random_batch()
    outputs = scheme.predict(batch, ["ensemble", "fused"])
    (term,) = [term for term in scheme.terms if term.name == "kd/ensemble->fused"]
    peers = [outputs[name] for name in scheme.peers]
    wanted = [*(peer.logits for peer in peers), *(peer.features["layer3"] for peer in peers)]
    found = torch.autograd.grad(term(outputs, batch), wanted, allow_unused=True)
    assert [gradient is None for gradient in found] == [True, True, False, False]


def test_clilr_divides_the_trunks_gradient_by_the_number_of_heads() -> None:
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


def test_clilr_without_a_response_is_plain_supervision_of_heads() -> None:
    weights = build(*CLILR, "losses.response=none")(random_batch(), START).weights
    assert weights == {f"ce/peer{k}": 1.0 for k in range(4)}


@pytest.mark.parametrize("method", ["one", "okddip", "ffl", "pcl"])
def test_what_teaches_rises_over_80_epochs_beside_full_hard_terms(method: str) -> None:
    scheme = build(*METHODS[method])
    batch = batch_for(scheme)
    for epoch, expected in ((0, 0.006737947), (40, 0.286504797), (80, 1.0), (90, 1.0)):
        weights = scheme(batch, Progress(epoch * 10, 3000, 10)).weights
        share = 0.5 if method == "pcl" else 1.0
        for term, weight in weights.items():
            part = share if "/ema->" in term else 1.0
            assert weight == pytest.approx(1.0 if term.startswith("ce/") else part * expected), term


def test_gates_are_weights_and_of_a_single_sample_use_the_running_statistics() -> None:
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


def test_a_branchs_gate_reads_what_the_branch_reads() -> None:
    gate = Gate(5, 3).double().eval()
    seen = randn(4, 3, 5)
    other = seen.clone()
    other[:, 1] += 1.0
    raw = torch.einsum("nmd,md->nm", other - seen, gate.fc.weight)
    assert raw.abs().gt(1e-9).any(dim=0).tolist() == [False, True, False]
    one_view = seen[:, :1].expand(4, 3, 5)
    expected = gate.norm(gate.fc(seen[:, 0])).relu().softmax(1)
    torch.testing.assert_close(gate(one_view), expected)
    scheme = build(*VARIANTS["online-one-own-views"]).eval()
    batch = batch_for(scheme)
    changed = dataclasses.replace(batch, aux_batches={"view1": random_batch(seed=77)})
    one, two = (scheme.predict(b, ["ensemble"]) for b in (batch, changed))
    assert torch.equal(one["peer0"].logits, two["peer0"].logits)
    assert not torch.equal(one["peer1"].logits, two["peer1"].logits)


def test_attention_shares_out_1_and_equal_features_give_the_mean() -> None:
    weights = attention(randn(4, 3, 2, seed=1), randn(4, 3, 2, seed=2))
    torch.testing.assert_close(weights.sum(2), torch.ones(4, 3, dtype=torch.float64))
    logits, feature = randn(4, 3, 6, seed=3), randn(4, 1, 8, seed=4).expand(4, 3, 8)
    node = PeerAttention(["a", "b", "c"], 8, 1, detach=True).double()
    outputs = {name: Output(logits[:, k], {"last": feature[:, k]}) for k, name in enumerate("abc")}
    for target in node(random_batch(n=4), outputs).values():
        torch.testing.assert_close(target.logits, logits.mean(1))


def test_the_leader_is_attended_to_by_nobody_and_starts_apart() -> None:
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
def test_mixing_logits_is_finite_in_any_precision(dtype: torch.dtype, size: float) -> None:
    logits = (size * randn(4, 3, 6)).to(dtype)
    queries = (size * randn(4, 3, 2, seed=1)).to(dtype)
    mixed = attended(attention(queries, queries), logits)
    gated = gated_mean(logits, torch.full((4, 3), 1 / 3).to(dtype))
    for value in (mixed, gated):
        assert value.dtype == torch.float32
        assert bool(value.isfinite().all())
        assert value.abs().max() <= logits.abs().max() * 1.01


@pytest.mark.parametrize("method", METHODS)
def test_bf16_and_large_logits_give_finite_losses_and_gradients(method: str) -> None:
    scheme = build(*METHODS[method], RISEN, dtype=torch.float32).train()
    for module in scheme.modules():
        if isinstance(module, nn.Linear):
            module.weight.data.mul_(1e4)
    with torch.autocast("cpu", torch.bfloat16):
        result = scheme(batch_for(scheme, dtype=torch.float32), START)
    result.total.backward()
    assert max(output.logits.abs().max().item() for output in result.outputs.values()) > 1e3
    assert all(value.isfinite() for value in result.losses.values())
    assert all(bool(p.grad.isfinite().all()) for p in trained(scheme) if p.grad is not None)


@pytest.mark.parametrize("topology", ["shared_trunk", "independent"])
def test_pcl_averages_follow_with_a_decay_that_warms_up(topology: str) -> None:
    scheme = build(*PCL, f"scheme.topology={topology}", "scheme.decay=0.7", "scheme.peers=2").train()
    sources = {name: node for name, node in scheme.nodes.items() if not isinstance(node, Ema) and name != "ensemble"}
    expected = {name: [p.detach().clone() for p in node.parameters()] for name, node in sources.items()}
    optimizer = torch.optim.SGD(trained(scheme), lr=0.1)
    for step in range(5):
        optimizer.zero_grad()
        scheme(batch_for(scheme, seed=step), START).total.backward()
        optimizer.step()
        scheme.after_step()
        decay = min(1 - 1 / (step + 2), 0.7)
        for name, node in sources.items():
            pairs = zip(expected[name], node.parameters(), strict=True)
            expected[name] = [decay * old + (1 - decay) * new.detach() for old, new in pairs]
    for name, values in expected.items():
        average = scheme.nodes[f"{name}/ema"]
        for found, value in zip(average.parameters(), values, strict=True):
            torch.testing.assert_close(found, value, rtol=1e-6, atol=1e-9)
        assert not any(p.requires_grad for p in average.parameters())
        assert not any(module.training for module in average.average.modules())
        assert f"nodes.{name}/ema.steps" in scheme.state_dict()


def test_pcl_peers_and_their_averages_see_their_own_view_and_in_evaluation_the_batch() -> None:
    scheme = build(*PCL).eval()
    assert scheme.aux_batches == ("view1", "view2")
    batch = batch_for(scheme)
    names = [*scheme.peers, *(f"{name}/ema" for name in scheme.peers)]
    views = [batch, batch.aux_batches["view1"], batch.aux_batches["view2"]] * 2
    outputs, plain = scheme.predict(batch, names), scheme.predict(random_batch(), names)
    for name, view in zip(names, views, strict=True):
        torch.testing.assert_close(outputs[name].logits, network_of(scheme, name)(view.images), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(plain[name].logits, network_of(scheme, name)(batch.images), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_heads_the_reported_one_first_and_what_they_cost(method: str) -> None:
    scheme = build(*METHODS[method], dtype=torch.float32)
    assert list(scheme.heads) == HEADS[method]
    assert list(scheme.peers) == [name for name in HEADS[method] if name.startswith("peer") and "ema" not in name]
    costs = head_costs(scheme, open_data(Digits(), seed=0, device=torch.device("cpu")))
    single = costs["peer0"]
    together = {"ensemble", "fused"} & set(scheme.heads)
    assert all(costs[head] == single for head in scheme.heads if head not in together)
    assert single["parameters"] == count_parameters(network_of(scheme, scheme.heads[0]))
    for head in together:
        count, branch = len(scheme.peers), count_parameters(scheme.nodes["peers"].branches[0])
        more = {"one": 3 * 32 + 3 + 6, "pcl": 192 * 10 + 10, "okddip": branch}.get(method, 0)  # the leader's branch
        more += count_parameters(scheme.nodes["fused"]) if head == "fused" else 0
        assert costs[head]["parameters"] == single["parameters"] + (count - 1) * branch + more
        assert single["macs"] < costs[head]["macs"] < count * single["macs"]


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name.startswith("timm/")])
@pytest.mark.parametrize("method", ["okddip", "ffl", "pcl"])
def test_separate_networks_may_be_any(method: str, architecture: str) -> None:
    data_spec = ARCHITECTURES[architecture]
    scheme = build(*base("online", method, architecture), "scheme.topology=independent", data_spec=data_spec).train()
    scheme(batch_for(scheme, data_spec), START).total.backward()
    assert all(p.grad is not None for p in trained(scheme))
    assert not [n for n, p in scheme.named_parameters() if p.grad is not None and p.dim() > 1 and not p.grad.any()]


def test_peers_may_have_their_own_architecture_rate_and_seed() -> None:
    independent = "scheme.topology=independent"
    scheme = build(
        *PCL, independent, "scheme.peers=[resnet20,convnet]", "scheme.lr_multipliers=[1,0.5]", "scheme.seeds=[3,4]"
    )
    assert scheme.lr_multipliers == {"peer0": 1.0, "peer1": 0.5}
    assert scheme.nodes["ensemble"].fc.in_features == 64 + 256
    a, b = (build(*OKDDIP, "scheme.seeds=[1,2,3]", f"seed={seed}") for seed in (0, 1))
    for number in range(3):
        weights = [network.branches[number].state_dict() for network in (a.nodes["peers"], b.nodes["peers"])]
        assert same_state(*weights)
    assert not torch.equal(network_of(a, "leader").fc.weight, network_of(b, "leader").fc.weight)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([*ONE, "losses.feature=hint"], "the teacher has no features"),
        ([*OKDDIP, "losses.relation=rkd"], "the teacher has no features"),
        ([*OKDDIP, "scheme.reduction=65"], "scheme.reduction=65 exceeds the 64 channels"),
        (
            [*OKDDIP, "scheme.topology=independent", "scheme.peers=[resnet20,convnet]"],
            r"last features must have the same width, not \[64, 256\]",
        ),
        ([*OKDDIP, "scheme.lr_multipliers=[1,1,1]"], "scheme.lr_multipliers needs scheme.topology=independent"),
        ([*OKDDIP, "scheme.seeds=[1,2,3,4]"], "scheme.seeds has 4 entries for 3 peers"),
        ([*CLILR, "scheme.seeds=[1]"], "scheme.seeds has 1 entries for 4 peers"),
        ([*ONE, "scheme.split=layer9"], "unknown stage of resnet20 'layer9'"),
        (
            [*FFL, "scheme.topology=independent", "scheme.peers=[resnet20,convnet]"],
            "whose sizes differ: peer0 2x2, peer1 1x1",
        ),
        ([*PCL, "train.ema=0.9"], "train.ema needs a separate network"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build(*overrides)
    assert "\n" not in str(caught.value)
