"""Every scheme and method: its value by an independent formula, its weights by seed, its errors, its golden trace.

A golden trace is the total loss of the first steps on digits, in float64 (`golden/NAME.json`). A change that is not
meant to change results must keep it. Written anew, after a change that is meant to, by
`KDSCHEMES_WRITE_GOLDEN=1 python -m pytest tests/schemes -k golden`. The tolerance is that of the initial
weights and images, which are float32: their last bit may depend on the machine.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from kdschemes.config.data import Digits
from kdschemes.config.schemes import SCHEMES
from kdschemes.config.schemes.custom import Topology
from kdschemes.core.types import DataSpec, Progress
from kdschemes.data import open_data
from kdschemes.errors import UserError
from kdschemes.models import save_weights
from kdschemes.schemes import BUILDERS, build_scheme
from tests import REPOSITORY
from tests.schemes import custom_formulas as formulas_topologies
from tests.schemes import custom_variants as variants_topologies
from tests.schemes.cases import (
    ARCHITECTURES,
    DATA_SPEC,
    DEFAULTS,
    METHODS,
    OFFLINE,
    ONLINE,
    REFUSED,
    SELF,
    START,
    VARIANTS,
    base,
    batch_for,
    build,
    configure,
    in_double,
    network_of,
    random_batch,
    same_state,
    trained,
)
from tests.schemes.formulas import Formula, Seen
from tests.schemes.offline import formulas as formulas_offline
from tests.schemes.online import formulas as formulas_online
from tests.schemes.online import formulas_branches as formulas_online_branches
from tests.schemes.self_distillation import formulas_exits as formulas_self_exits
from tests.schemes.self_distillation import formulas_generations as formulas_self_generations
from tests.schemes.self_distillation import formulas_single as formulas_self_single
from tests.schemes.supervised import formulas as formulas_supervised

GOLDEN = REPOSITORY / "tests" / "golden"
GOLDEN_STEPS = 20
FAMILIES = (
    formulas_supervised,
    formulas_offline,
    formulas_online,
    formulas_online_branches,
    formulas_self_exits,
    formulas_self_single,
    formulas_self_generations,
    formulas_topologies,
)
FORMULAS: dict[type, Formula] = {cls: formula for family in FAMILIES for cls, formula in family.FORMULAS.items()}
EXACT: dict[str, list[str]] = DEFAULTS | {
    name: overrides for family in FAMILIES for name, overrides in family.EXACT.items()
}
LATER = Progress(step=37, total_steps=100, steps_per_epoch=10)


BORN_AGAIN = ("self-ban", "self-tfkd_self")
"""Methods whose teacher has started from the student's usual weights, so that the student starts from others."""


def test_every_method_has_a_builder_and_a_formula() -> None:
    methods = {options for table in SCHEMES.values() for options in table.values()}
    methods.add(Topology)
    assert methods == set(BUILDERS)
    assert methods == set(FORMULAS), "write the method's formula in formulas_*.py"


@pytest.mark.parametrize("name", EXACT)
def test_total_is_the_formula_of_the_method(name: str) -> None:
    """In training mode, twice: at the start, and later, when ramps have risen and memories are filled."""
    config, scheme = configure(*EXACT[name]), build(*EXACT[name]).train()
    for progress, seed in ((START, 0), (LATER, 1)):
        batch = batch_for(scheme, n=7, seed=seed)
        before = copy.deepcopy(scheme)
        with torch.no_grad():
            outputs = before.predict(batch, {name for node in before.nodes.values() for name in node.provides})
        expected = FORMULAS[type(config.scheme)](Seen(config, scheme, outputs, batch, progress))
        assert scheme(batch, progress).total.item() == pytest.approx(expected, rel=1e-10)
        scheme.after_step()


@pytest.mark.parametrize("name", VARIANTS)
def test_total_is_the_weighted_sum_of_the_reported_losses(name: str) -> None:
    scheme = build(*VARIANTS[name])
    result = scheme(batch_for(scheme), START)
    assert result.losses.keys() == result.weights.keys()
    assert not any(value.requires_grad for value in result.losses.values())
    assert not any(output.logits.requires_grad for output in result.outputs.values())
    total = sum(weight * result.losses[term].item() for term, weight in result.weights.items())
    assert result.total.item() == pytest.approx(total, rel=1e-12)


PROJECTING = ["offline-kd-hint-rkd", "offline-kd-fsp-adapters", "online-dml-mixed-peers", "self-byot-linear"]
TRACED = [
    *DEFAULTS,
    *variants_topologies.VARIANTS,
    *PROJECTING,
    "offline-kd-two-teachers-hint",
    "online-dml-shared-trunk",
    "self-byot-at-rkd",
]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_every_parameter_of_any_architecture(method: str, architecture: str) -> None:
    data_spec = ARCHITECTURES[architecture]
    if (method, architecture) in REFUSED:
        with pytest.raises(UserError, match=REFUSED[method, architecture]):
            build(*base(*METHODS[method], architecture), data_spec=data_spec)
        return
    scheme = build(*base(*METHODS[method], architecture), data_spec=data_spec)
    result = scheme.train()(batch_for(scheme, data_spec), LATER)
    result.total.backward()
    assert result.total.isfinite()
    missing = [n for n, p in scheme.named_parameters() if p.requires_grad and p.grad is None]
    silent = [n for n, p in scheme.named_parameters() if p.grad is not None and p.dim() > 1 and not p.grad.any()]
    assert trained(scheme)
    assert not missing
    assert not silent
    assert all(output.logits.shape == (6, data_spec.num_classes) for output in result.outputs.values())


@pytest.mark.parametrize("name", VARIANTS)
def test_every_trained_parameter_is_in_one_group(name: str) -> None:
    scheme = build(*VARIANTS[name])
    grouped = [p for group in scheme.parameter_groups().values() for p in group]
    assert len({id(p) for p in grouped}) == len(grouped)
    assert {id(p) for p in grouped} == {id(p) for p in trained(scheme)}


@pytest.mark.parametrize("name", [*DEFAULTS, *PROJECTING, "online-dml-shared-trunk"])
def test_initial_weights_are_a_function_of_the_seed_alone(name: str) -> None:
    torch.manual_seed(1)
    first = build_scheme(configure(*VARIANTS[name], "seed=3"), DATA_SPEC)
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    second = build_scheme(configure(*VARIANTS[name], "seed=3"), DATA_SPEC)
    assert same_state(first, second)
    assert torch.equal(torch.random.get_rng_state(), before)
    other = build(*VARIANTS[name])
    drawn = [node for node in first.nodes if trained(first.nodes[node]) and node != "teacher"]
    assert all(not same_state(first.nodes[node], other.nodes[node]) for node in drawn)
    assert all(not torch.equal(p, q) for p, q in zip(trained(first.terms), trained(other.terms), strict=True))


def test_the_student_starts_the_same_in_every_scheme_and_peers_start_apart() -> None:
    names = [name for name in DEFAULTS if not name.startswith("online") and name not in BORN_AGAIN]
    students = [network_of(build(*DEFAULTS[name]), "student") for name in names]
    assert len(students) > 3
    assert all(same_state(students[0], other) for other in students[1:])
    for name in BORN_AGAIN:
        assert not same_state(students[0], network_of(build(*DEFAULTS[name]), "student"))
    peers = build(*VARIANTS["online-dml-three-peers"])
    for a, b in itertools.combinations(("peer0", "peer1", "peer2"), 2):
        assert not same_state(network_of(peers, a), network_of(peers, b))


def test_teachers_come_from_their_own_seed_or_checkpoint(tmp_path: Path) -> None:
    teacher = network_of(build(*OFFLINE, "seed=1"), "teacher")
    assert same_state(teacher, network_of(build(*OFFLINE, "seed=2"), "teacher"))
    other = network_of(build(*OFFLINE, "teacher.seed=5"), "teacher")
    assert not same_state(teacher, other)
    save_weights(other.float(), tmp_path / "other")
    loaded = build(*OFFLINE, f"teacher.checkpoint={tmp_path / 'other'}")
    assert same_state(other.double(), network_of(loaded, "teacher"))
    again = build(*OFFLINE, f"model.checkpoint={tmp_path / 'other'}")
    assert same_state(other, network_of(again, "student"))
    with pytest.raises(UserError, match="10 classes"):
        build(*OFFLINE, f"teacher.checkpoint={tmp_path / 'other'}", data_spec=DataSpec(7, 1, 8))


@pytest.mark.parametrize("feature", ["hint", "at"])
@pytest.mark.parametrize("relation", ["rkd", "fsp"])
@pytest.mark.parametrize("scheme", ["offline", "online", "self"])
def test_feature_and_relation_losses_plug_into_every_scheme(scheme: str, feature: str, relation: str) -> None:
    overrides = [*{"offline": OFFLINE, "online": ONLINE, "self": SELF}[scheme], "losses.response=kd"]
    overrides += [f"losses.feature={feature}", f"losses.relation={relation}"]
    if scheme == "self" and relation == "fsp":
        with pytest.raises(UserError, match="fsp needs at least two stage pairs"):
            build(*overrides)
        return
    scheme_under_test = build(*overrides)
    result = scheme_under_test(random_batch(), START)
    edges = {name.partition("/")[2] for name in result.losses if not name.startswith("ce/")}
    assert {f"{loss}/{edge}" for loss in ("kd", feature, relation) for edge in edges} <= result.losses.keys()
    assert all(value > 0 for value in result.losses.values())
    result.total.backward()
    assert all(p.grad is not None for p in trained(scheme_under_test))


def test_alpha_weighs_the_response_alone_and_several_teachers_share_the_features() -> None:
    weights = build(*OFFLINE, "losses.feature=hint", "scheme.alpha=0.3")(random_batch(), START).weights
    assert weights == pytest.approx({"ce/student": 0.7, "kd/teacher->student": 0.3, "hint/teacher->student": 100.0})
    weights = build(*OFFLINE, "losses.response=none", "losses.relation=rkd")(random_batch(), START).weights
    assert weights == {"ce/student": 1.0, "rkd/teacher->student": 1.0}
    overrides = [*VARIANTS["offline-kd-two-teachers"], "losses.relation=rkd", "losses.relation.weight=2"]
    weights = build(*overrides)(random_batch(), START).weights
    assert {"rkd/teacher0->student": 0.5, "rkd/teacher1->student": 1.5}.items() <= weights.items()
    assert {name for name in weights if name.startswith("kd/")} == {"kd/teacher->student"}
    assert "rkd/teacher->student" not in weights
    weights = build(*SELF, "losses.response=none", "losses.feature=none")(random_batch(), START).weights
    assert weights == {"ce/student": 1.0, "ce/student/exit1": 1.0, "ce/student/exit2": 1.0}
    weights = build(*VARIANTS["online-dml-three-peers"], "losses.relation=rkd")(random_batch(), START).weights
    assert weights["kd/peer0->peer2"] == weights["rkd/peer2->peer1"] == 0.5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([*SELF, "losses.relation=fsp"], "fsp needs at least two stage pairs"),
        ([*SELF, "model=convnet", "losses.feature=at"], "at needs more than one position"),
        ([*SELF, "scheme.exits=[layer3]"], "no exit can be on layer3"),
        ([*SELF, "scheme.exits=[stage1]"], "unknown stage of resnet20 'stage1'"),
        ([*ONLINE, "scheme.split=layer2"], "scheme.split needs scheme.topology=shared_trunk"),
        ([*ONLINE, "scheme.topology=shared_trunk", "scheme.peers=[resnet20,convnet]"], "peers on one trunk need one"),
        ([*ONLINE, "scheme.topology=shared_trunk", "scheme.split=layer1", "model=convnet"], "unknown stage of convnet"),
        ([*ONLINE, "scheme.topology=shared_trunk", "train.ema=0.9"], "train.ema needs a separate network"),
        ([*OFFLINE, "losses.feature=hint", "losses.feature.stages=[layer9:layer1]"], "unknown student stage 'layer9'"),
        ([*OFFLINE, "teacher.checkpoint=/nowhere"], "no weights at"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build(*overrides)
    assert "\n" not in str(caught.value)


def test_shared_trunk_shares_all_before_the_split_and_nothing_after() -> None:
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


def trace(overrides: list[str]) -> list[float]:
    """Return the total of each of the first steps on digits, by SGD with momentum."""
    data = open_data(Digits(), seed=0, device=torch.device("cpu"))
    data_spec = dataclasses.replace(DATA_SPEC, train_labels=data.train_labels)
    scheme = build_scheme(configure(*overrides), data_spec).double().train()
    optimizer = torch.optim.SGD(trained(scheme), lr=0.02, momentum=0.9)
    steps = data.train_steps(
        0, batch_size=16, grad_accum_steps=1, rank=0, world=1, drop_last=False, aux_batches=scheme.aux_batches
    )
    totals = []
    for (batch,), _ in zip(steps, range(GOLDEN_STEPS), strict=False):
        result = scheme(in_double(batch), START)
        optimizer.zero_grad()
        result.total.backward()
        optimizer.step()
        scheme.after_step()
        totals.append(result.total.item())
    return totals


@pytest.mark.parametrize("name", TRACED)
def test_golden_trace(name: str) -> None:
    totals, path = trace(VARIANTS[name]), GOLDEN / f"{name}.json"
    if os.environ.get("KDSCHEMES_WRITE_GOLDEN"):
        content = {"overrides": VARIANTS[name], "torch": torch.__version__, "totals": totals}
        path.write_text(json.dumps(content, indent=2) + "\n")
    assert path.is_file(), "no golden trace yet: see the head of this file"
    golden = json.loads(path.read_text())
    assert golden["overrides"] == VARIANTS[name]
    np.testing.assert_allclose(totals, golden["totals"], rtol=1e-6)
