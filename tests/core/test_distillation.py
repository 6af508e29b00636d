"""The core: where gradients flow, what a step is worth, what is computed, and what permutations change."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

from kdschemes.config.data import Digits
from kdschemes.config.losses import Losses
from kdschemes.config.losses.response import KD
from kdschemes.config.schemes import SCHEMES
from kdschemes.core.averages import Ema
from kdschemes.core.distillation import Distillation
from kdschemes.core.frozen import Frozen
from kdschemes.core.nodes import Ensemble, Network, NetworkWithExits, Node, SharedTrunk
from kdschemes.core.schedules import constant
from kdschemes.core.terms import Supervise, Transfer
from kdschemes.core.types import Batch, Output, Progress
from kdschemes.data import open_data
from kdschemes.schemes.distill import Edge, distill, probe
from kdschemes.schemes.online.ffl import Fusion
from kdschemes.schemes.online.one import GatedEnsemble
from kdschemes.schemes.online.pcl import PeerEnsemble
from kdschemes.schemes.self_distillation.two_views import NetworkTwice
from tests.schemes.cases import (
    DATA_SPEC,
    DEFAULTS,
    METHODS,
    OFFLINE,
    START,
    base,
    batch_for,
    build,
    in_double,
    random_batch,
    state_of,
    trained,
)
from tests.schemes.table import VARIANTS

HALFWAY = Progress(step=50, total_steps=100, steps_per_epoch=1)


def tensors(output: Output) -> list[Tensor]:
    return [output.logits, *output.features.values()]


def reached(value: Tensor, inputs: Iterable[Tensor]) -> list[bool]:
    """Return for each input whether any gradient of `value` arrives there."""
    inputs = list(inputs)
    found: list[bool] = [False] * len(inputs)
    places = [k for k, x in enumerate(inputs) if x.requires_grad]
    if places:
        gradients = torch.autograd.grad(value, [inputs[k] for k in places], retain_graph=True, allow_unused=True)
        for k, gradient in zip(places, gradients, strict=True):
            found[k] = gradient is not None and bool(gradient.any())
    return found


def all_outputs(scheme: Distillation, batch: Batch) -> dict[str, Output]:
    return scheme.predict(batch, {name for node in scheme.nodes.values() for name in node.provides})


def transfers(scheme: Distillation) -> list[Transfer]:
    return [term for term in scheme.terms if isinstance(term, Transfer)]


@pytest.mark.parametrize("name", [name for name in VARIANTS if not name.startswith("supervised")])
def test_nothing_flows_to_the_source_of_an_edge(name: str) -> None:
    scheme = build(*VARIANTS[name])
    batch = batch_for(scheme)
    outputs = all_outputs(scheme, batch)
    assert any(not isinstance(term, Supervise) for term in scheme.terms)
    for term in transfers(scheme):
        value = term(outputs, batch)
        source, target = scheme.node_of(term.source), scheme.node_of(term.target)
        assert any(reached(value, tensors(outputs[term.target]))), term.name
        if term.source == term.target:  # a loss that looks at no teacher
            continue
        assert reached(value, [outputs[term.source].logits])[0] is not term.detach_source, term.name
        if not term.detach_source:
            assert any(reached(value, source.parameters())), term.name
        elif source is not target:
            assert not any(reached(value, source.parameters())), term.name
            assert not any(reached(value, tensors(outputs[term.source]))), term.name
        elif isinstance(source, SharedTrunk):
            own = {*source.trunk.parameters(), *source.branches[source.provides.index(term.target)].parameters()}
            assert any(reached(value, source.trunk.parameters())), term.name
            assert not any(reached(value, (p for p in source.parameters() if p not in own))), term.name
        elif isinstance(source, NetworkTwice):
            assert not any(reached(value, tensors(outputs[term.source]))), term.name
        else:
            assert isinstance(source, NetworkWithExits)
            assert not any(reached(value, source.network.network.fc.parameters())), term.name
            deepest = list(outputs[term.source].features.values())[-1]
            assert not any(reached(value, [deepest])), term.name
        learners = [*scheme.needed([term.target]), *([] if term.detach_source else [source])]
        bystanders = [node for node in scheme.nodes.values() if node not in learners]
        assert not any(reached(value, (p for node in bystanders for p in node.parameters()))), term.name


@pytest.mark.parametrize("name", ["online-dml-hint-rkd", "self-byot"])
def test_an_edge_that_does_not_detach_teaches_both_ends(name: str) -> None:
    scheme = build(*VARIANTS[name])
    batch = batch_for(scheme)
    outputs = all_outputs(scheme, batch)
    for term in transfers(scheme):
        term.detach_source = False
        assert any(reached(term(outputs, batch), tensors(outputs[term.source]))), term.name


def test_the_trunk_learns_from_every_peer_and_a_branch_from_its_own_terms() -> None:
    scheme, batch = build(*VARIANTS["online-dml-shared-trunk"]), random_batch()
    node = scheme.nodes["peers"]
    assert isinstance(node, SharedTrunk)
    trunk = list(node.trunk.parameters())
    outputs = all_outputs(scheme, batch)
    by_target: dict[str, list[Tensor]] = {}
    for peer in ("peer0", "peer1", "peer2"):
        value = torch.stack([t.weight(START) * t(outputs, batch) for t in scheme.terms if t.target == peer]).sum()
        by_target[peer] = list(torch.autograd.grad(value, trunk, retain_graph=True))
    scheme(batch, START).total.backward()
    for place, parameter in enumerate(trunk):
        expected = sum(gradients[place] for gradients in by_target.values())
        torch.testing.assert_close(parameter.grad, expected)


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_term_of_weight_0_is_computed_and_waits_for_nobody(name: str) -> None:
    scheme = build(*VARIANTS[name])
    for term in scheme.terms:
        term.weight = constant(0.0)
    result = scheme(batch_for(scheme), START)
    assert result.losses.keys() == {term.name for term in scheme.terms}
    assert result.total == 0
    assert all(value > 0 for value in result.losses.values())
    result.total.backward()
    assert all(p.grad is not None and not p.grad.any() for p in trained(scheme))


@pytest.mark.parametrize("overrides", [[*OFFLINE, "scheme.alpha=1"], [*OFFLINE, "scheme.alpha=0"]])
def test_alpha_at_its_ends_still_computes_both_terms(overrides: list[str]) -> None:
    result = build(*overrides, "losses.feature=hint", "losses.feature.weight=0")(random_batch(), START)
    assert sorted(result.weights.values()) == [0.0, 0.0, 1.0]
    assert all(value > 0 for value in result.losses.values())


def test_a_ramp_multiplies_the_weight_of_its_term_over_training() -> None:
    ramp = ["losses.response.schedule=linear", "losses.response.ramp_epochs=2", "losses.response.weight=3"]
    scheme, batch = build(*OFFLINE, "scheme.alpha=0.5", *ramp), random_batch()
    weights = [scheme(batch, Progress(step, 100, 10)).weights for step in (0, 5, 20, 90)]
    assert [w["kd/teacher->student"] for w in weights] == pytest.approx([0.0, 1.5 * 0.25, 1.5, 1.5])
    assert [w["ce/student"] for w in weights] == [0.5] * 4


def reordered(batch: Batch, order: Tensor) -> Batch:
    aux_batches = {name: reordered(aux_batch, order) for name, aux_batch in batch.aux_batches.items()}
    return Batch(batch.images[order], batch.labels[order], batch.index[order], aux_batches=aux_batches)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_order_of_samples_does_not_matter(name: str) -> None:
    scheme = build(*VARIANTS[name])
    batch = batch_for(scheme, n=5)
    order = torch.tensor([3, 0, 4, 2, 1])
    shuffled = reordered(batch, order)
    first, second = scheme(batch, START), scheme(shuffled, START)
    for term, value in first.losses.items():
        assert second.losses[term].item() == pytest.approx(value.item(), rel=1e-9), term


def renumbered(batch: Batch, numbers: Tensor) -> Batch:
    aux_batches = {name: renumbered(aux_batch, numbers) for name, aux_batch in batch.aux_batches.items()}
    return dataclasses.replace(batch, labels=numbers[batch.labels], aux_batches=aux_batches)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_numbering_of_classes_does_not_matter(name: str) -> None:
    scheme = build(*VARIANTS[name])
    batch = batch_for(scheme)
    outputs = all_outputs(scheme, batch)
    order = torch.tensor([4, 7, 0, 9, 2, 1, 3, 8, 6, 5])
    renamed = {key: dataclasses.replace(output, logits=output.logits[:, order]) for key, output in outputs.items()}
    relabeled = renumbered(batch, order.argsort())
    for term in scheme.terms:
        expected = term(outputs, batch).item()
        for layer in (getattr(term, "classifier", None), getattr(getattr(term, "loss", None), "weak", None)):
            if layer is not None:
                layer.weight.data, layer.bias.data = layer.weight.data[order], layer.bias.data[order]
        assert term(renamed, relabeled).item() == pytest.approx(expected, rel=1e-12), term.name


UNEQUAL = ["online-switokd"]
"""Methods whose networks differ in what they do."""
EXCHANGED = {name: DEFAULTS[name] for name in METHODS if METHODS[name][0] == "online"} | {
    f"online-{method}-{topology}": [*base("online", method), f"scheme.topology={topology}"]
    for method, table in SCHEMES["online"].items()
    if "topology" in {field.name for field in dataclasses.fields(table)}
    for topology in ("independent", "shared_trunk")
}
EXCHANGED |= {
    name: VARIANTS[name] for name in VARIANTS if name.startswith(("online-kdcl-", "online-codistillation-published"))
}
EXCHANGED = {
    name: [*overrides, "scheme.peers=3"] for name, overrides in EXCHANGED.items() if not name.startswith(tuple(UNEQUAL))
}
TURN = {"peer0": "peer1", "peer1": "peer2", "peer2": "peer0"}


def exchange_peers(node: Node) -> None:
    """Give each peer of a node the weights of the one before, where the node reads peers in their order too."""
    if isinstance(node, SharedTrunk):
        branches = [node.branches[node.provides.index(peer)] for peer in TURN]
        for branch, state in zip(branches, [state_of(branches[k - 1]) for k in range(3)], strict=True):
            branch.load_state_dict(state)
    read_in_order: list[tuple[nn.Module, int]] = []
    if isinstance(node, GatedEnsemble):
        read_in_order = [(node.gate.fc, 0), (node.gate.norm, 0)]
    elif isinstance(node, PeerEnsemble):
        read_in_order = [(node.fc, 1)]
    elif isinstance(node, Fusion):
        read_in_order = [(node.module.body[0], 0), (node.module.body[1], 0), (node.module.body[3], 1)]
    for module, side in read_in_order:
        for tensor in module.state_dict().values():
            if tensor.dim() > side:
                tensor.copy_(torch.cat([tensor.chunk(3, side)[k - 1] for k in range(3)], side))


@pytest.mark.parametrize("name", EXCHANGED)
def test_peers_that_change_places_change_their_losses(name: str) -> None:
    """All peers see one view, so that they are equals."""
    scheme = build(*EXCHANGED[name])
    assert set(scheme.peers) == set(TURN)
    batch = random_batch()
    batch = dataclasses.replace(batch, aux_batches=dict.fromkeys(scheme.aux_batches, batch))
    before = scheme(batch, HALFWAY)
    for node in scheme.nodes.values():
        exchange_peers(node.average if isinstance(node, Ema) else node)
    for kind in ("", "/ema"):
        states = {TURN[peer]: state_of(scheme.nodes[peer + kind]) for peer in TURN if peer + kind in scheme.nodes}
        for peer, state in states.items():
            scheme.nodes[peer + kind].load_state_dict(state)
    after = scheme(batch, HALFWAY)
    assert after.total.item() == pytest.approx(before.total.item(), rel=1e-10)
    for name, value in before.losses.items():
        moved = re.sub(r"(?<=[a-z])\d\b", lambda number: TURN[f"peer{number[0]}"][-1], name)
        assert after.losses[moved].item() == pytest.approx(value.item(), rel=1e-10), name
    assert any(after.losses[name].item() != pytest.approx(value.item()) for name, value in before.losses.items())


@pytest.mark.parametrize("name", ["offline-kd-hint-rkd", "online-dml-mixed-peers", "self-byot-ema"])
def test_predict_runs_only_what_the_named_outputs_need(name: str) -> None:
    scheme = build(*VARIANTS[name])
    for head in scheme.heads:
        nodes = scheme.needed([head])
        produced = set(scheme.predict(random_batch(), [head]))
        assert head in produced
        assert produced == {output for node in nodes for output in node.provides}
        assert [node for node in scheme.nodes.values() if node in nodes] == nodes
        if not isinstance(scheme.node_of(head), Ensemble):
            assert nodes == [scheme.node_of(head)]


def test_training_does_not_run_the_average_and_ensembles_of_heads_alone() -> None:
    result = build(*VARIANTS["self-byot-ema"])(random_batch(), START)
    assert result.outputs.keys() == {"student", "student/exit1", "student/exit2"}


@pytest.mark.parametrize("name", ["offline-kd-at-fsp", "online-dml-three-peers", "self-byot", "supervised-ce"])
def test_accumulated_micro_batches_add_up_to_the_mean_over_the_step(name: str) -> None:
    """With batch norm frozen, the gradient of 13 samples is that of their micro-batches of 5, 4 and 4."""
    scheme = build(*VARIANTS[name]).eval()
    data = open_data(Digits(), seed=0, device=torch.device("cpu"))
    totals, gradients = [], []
    for grad_accum_steps in (1, 3):
        steps = data.train_steps(0, batch_size=13, grad_accum_steps=grad_accum_steps, rank=0, world=1, drop_last=False)
        scheme.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for batch in next(steps):
            result = scheme(in_double(batch), START)
            result.total.backward()
            total += result.total.detach()
        totals.append(total.item())
        gradients.append([p.grad.clone() for p in trained(scheme) if p.grad is not None])
    assert totals[0] == pytest.approx(totals[1], rel=1e-12)
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-12)


TWO_PASSES = ["self-cskd", "self-dlb"]
"""Methods whose second batch of images follows in a pass of its own, without gradient or with its own statistics."""


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_step_runs_each_network_once(name: str) -> None:
    """The first layer of every network sees each image of the batch and of its auxiliary batches once."""
    scheme = build(*VARIANTS[name]).train()
    seen: dict[str, list[int]] = {}
    trained_on = scheme.needed({output for term in scheme.terms for output in term.reads})
    for key, node in scheme.nodes.items():
        if node not in trained_on:
            continue
        network = node.network if isinstance(node, Frozen) else node
        first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
        if first is not None and not node.reads:
            seen[key] = []
            first.register_forward_hook(lambda module, x, y, key=key: seen[key].append(len(x[0])))
    scheme(batch_for(scheme), START)
    assert seen
    for key, rows in seen.items():
        aux_batches = scheme.nodes[key].aux_batches
        passes = 2 if name in TWO_PASSES and aux_batches else 1
        assert len(rows) == passes, f"{key} ran {len(rows)} times"
        assert 6 <= sum(rows) <= 6 * (1 + len(aux_batches)), key


def test_probing_leaves_modes_and_statistics_as_they_were() -> None:
    scheme = build(*OFFLINE, dtype=torch.float32).train()
    before = state_of(scheme)
    shapes = probe(scheme.nodes.values(), DATA_SPEC)
    assert shapes["student"] == {"layer1": (16, 8, 8), "layer2": (32, 4, 4), "layer3": (64, 2, 2)}
    assert all(torch.equal(before[name], tensor) for name, tensor in scheme.state_dict().items())
    assert scheme.nodes["student"].network.bn1.training
    assert scheme.node_of("teacher").inference_network("teacher").training is False


def test_a_topology_of_ones_own_takes_a_few_lines() -> None:
    """Two students under one teacher, which runs once for both."""
    teacher = build(*OFFLINE).nodes["teacher"]
    students = {name: build(*base("supervised", "ce"), f"seed={k}").nodes["student"] for k, name in enumerate("ab")}
    nodes = {"teacher": teacher} | {name: Network(name, node.network) for name, node in students.items()}
    losses = Losses(response=KD())
    edges = [Edge("teacher", name, response=0.9) for name in students]
    for node in nodes.values():
        node.float()
    scheme = distill(
        nodes, supervised={"a": 0.1, "b": 0.1}, edges=edges, losses=losses, heads="ab", data_spec=DATA_SPEC
    )
    result = scheme(random_batch(dtype=torch.float32), START)
    assert set(result.losses) == {"ce/a", "ce/b", "kd/teacher->a", "kd/teacher->b"}
    assert result.weights["kd/teacher->a"] == pytest.approx(0.9)
    assert scheme.parameter_groups().keys() == {"a", "b"}


def test_a_scheme_that_names_what_nobody_provides_is_a_mistake() -> None:
    student = build(*base("supervised", "ce")).nodes["student"]
    terms = [Supervise("student", constant(1.0))]
    with pytest.raises(AssertionError, match="no node provides"):
        Distillation({"student": student}, terms, ["studnt"])
    with pytest.raises(AssertionError, match="share a name"):
        Distillation({"student": student}, terms * 2, ["student"])
