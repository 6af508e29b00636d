"""Nodes: a teacher that nothing changes, an average that follows, ensembles, plain networks of heads."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from kdschemes.core.averages import Ema
from kdschemes.core.distillation import Distillation
from kdschemes.core.frozen import Frozen
from kdschemes.core.nodes import Ensemble, Network
from kdschemes.core.types import Output
from kdschemes.models import create_model
from tests import REPOSITORY
from tests.schemes.cases import (
    DEFAULTS,
    OFFLINE,
    SELF,
    START,
    base,
    batch_for,
    build,
    network_of,
    random_batch,
    same_state,
    state_of,
    trained,
)
from tests.schemes.table import VARIANTS

TEACHERS = ["offline-kd", "offline-kd-two-teachers", "offline-kd-hint-rkd"]


def steps(scheme: Distillation, count: int, lr: float = 0.1) -> None:
    optimizer = torch.optim.SGD(trained(scheme), lr=lr, momentum=0.9, weight_decay=0.1)
    dtype = next(iter(trained(scheme))).dtype
    for seed in range(count):
        optimizer.zero_grad()
        scheme(batch_for(scheme, seed=seed, dtype=dtype), START).total.backward()
        optimizer.step()
        scheme.after_step()


def frozen(scheme: Distillation) -> list[Frozen]:
    return [node for node in scheme.nodes.values() if isinstance(node, Frozen)]


@pytest.mark.parametrize("name", TEACHERS)
def test_a_teacher_is_bitwise_unchanged_by_training(name: str) -> None:
    scheme = build(*VARIANTS[name]).train()
    before = [state_of(node.network) for node in frozen(scheme)]
    student = state_of(scheme.nodes["student"])
    steps(scheme, 3)
    assert before
    assert all(same_state(node.network, state) for node, state in zip(frozen(scheme), before, strict=True))
    assert not same_state(scheme.nodes["student"], student)


@pytest.mark.parametrize("name", TEACHERS)
def test_a_teacher_is_always_in_evaluation_mode_and_nowhere_to_be_seen(name: str) -> None:
    scheme = build(*VARIANTS[name])
    visible = {id(module) for module in scheme.modules()}
    for node in frozen(scheme):
        for mode in (True, False):
            scheme.train(mode)
            node.train(True)
            assert not any(module.training for module in node.network.modules())
        assert not any(p.requires_grad for p in node.network.parameters())
        assert not visible & {id(module) for module in node.network.modules()}
    assert not any("teacher" in key for key in scheme.state_dict())
    hidden = {id(p) for node in frozen(scheme) for p in node.network.parameters()}
    assert not hidden & {id(p) for p in scheme.parameters()}


def test_a_teacher_follows_the_scheme_to_another_type_and_memory_format() -> None:
    scheme = build(*OFFLINE, dtype=torch.float32)
    network = network_of(scheme, "teacher")
    for convert, dtype in ((scheme.double, torch.float64), (lambda: scheme.to(torch.bfloat16), torch.bfloat16)):
        convert()
        assert {t.dtype for t in network.state_dict().values() if t.is_floating_point()} == {dtype}
        assert scheme(random_batch(dtype=dtype), START).outputs["teacher"].logits.dtype == dtype
    scheme.to(memory_format=torch.channels_last)
    assert network.get_parameter("layer1.0.conv1.weight").is_contiguous(memory_format=torch.channels_last)
    if torch.cuda.is_available():
        scheme.cuda()
        assert all(t.is_cuda for t in network.state_dict().values())


def test_a_checkpoint_of_a_scheme_loads_with_another_teacher() -> None:
    scheme, other = build(*OFFLINE), build(*OFFLINE, "teacher.seed=9", "seed=9")
    teacher = state_of(network_of(other, "teacher"))
    other.load_state_dict(scheme.state_dict())
    assert same_state(network_of(other, "student"), network_of(scheme, "student"))
    assert same_state(network_of(other, "teacher"), teacher)


COMPILED = """
import torch
from torch._dynamo.testing import CompileCounter
from kdschemes.core.frozen import Frozen
from kdschemes.core.types import Batch
from kdschemes.models import create_model

counter = CompileCounter()
teacher = Frozen("teacher", create_model("resnet20", num_classes=10, channels=1, image_size=8))
teacher.compile(backend=counter)
for epoch in (0, 0, 1):
    teacher(Batch(torch.zeros(6, 1, 8, 8), torch.arange(6), torch.arange(6), epoch=epoch), {})
    print(counter.frame_count)
"""


@pytest.mark.slow
def test_a_compiled_teacher_is_not_compiled_again_for_another_epoch() -> None:
    """In its own process, because what checks shapes in tests cannot be compiled."""
    counts = subprocess.check_output([sys.executable, "-c", COMPILED], cwd=REPOSITORY, text=True).split()
    assert counts[1] == counts[2] != "0"


def test_a_trained_teacher_runs_in_evaluation_mode() -> None:
    network = create_model("resnet20", num_classes=10, channels=1, image_size=8).train()
    batch = random_batch(dtype=torch.float32)
    network(batch.images)
    expected = copy.deepcopy(network).eval()(batch.images)
    node = Frozen("teacher", network).train()
    output = node(batch, {})["teacher"]
    assert torch.equal(output.logits, expected)
    assert not any(t.requires_grad for t in (output.logits, *output.features.values()))


@pytest.mark.parametrize("name", ["supervised-ce-ema", "self-byot-ema"])
def test_average_is_the_formula_over_steps(name: str) -> None:
    """With a decay of 0.9 that warms up: a few steps leave little of the initial weights."""
    scheme = build(*VARIANTS[name]).train()
    source, node = network_of(scheme, "student"), scheme.nodes["student/ema"]
    assert isinstance(node, Ema)
    averaged = node.training_network("student/ema")
    assert averaged is not None
    assert same_state(averaged, source)
    expected = state_of(source)
    optimizer = torch.optim.SGD(trained(scheme), lr=0.1)
    for step in range(1, 12):
        optimizer.zero_grad()
        scheme(batch_for(scheme, seed=step), START).total.backward()
        optimizer.step()
        scheme.after_step()
        decay = min(0.9, 1 - 1 / (step + 1))
        for key, value in source.state_dict().items():
            expected[key] = decay * expected[key] + (1 - decay) * value if value.is_floating_point() else value.clone()
    for key, value in averaged.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=1e-12, atol=1e-14)
    assert not same_state(averaged, source)
    assert not any(p.requires_grad for p in averaged.parameters())
    scheme.train()
    assert not any(module.training for module in averaged.modules())
    assert any(key.startswith("nodes.student/ema.") for key in scheme.state_dict())


def test_average_adds_a_head_and_changes_nothing_else() -> None:
    plain, averaged = build(*SELF), build(*SELF, "train.ema=0.5")
    assert averaged.heads == (*plain.heads, "student/ema")
    steps(plain.train(), 2)
    steps(averaged.train(), 2)
    assert same_state(network_of(plain, "student"), network_of(averaged, "student"))
    peers = build(*base("online", "dml"), "train.ema=0.5")
    assert peers.heads == ("peer0", "peer1", "ensemble", "peer0/ema")
    offline = build(*OFFLINE, "train.ema=0.5")
    assert offline.teacher == "teacher"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_ensemble_is_the_weighted_mean_in_float32_at_least(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(6, 10, generator=generator).to(dtype) for _ in range(3)]
    outputs = {name: Output(z, {"s": z}) for name, z in zip("abc", logits, strict=True)}
    even = Ensemble("mean", ["a", "b", "c"])(random_batch(), outputs)["mean"]
    weighed = Ensemble("mean", ["a", "c"], [1.0, 3.0])(random_batch(), outputs)["mean"]
    a, b, c = (z.double() for z in logits)
    tolerance = {"rtol": 1e-14, "atol": 1e-15} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-6}
    assert even.logits.dtype == weighed.logits.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(even.logits.double(), (a + b + c) / 3, **tolerance)
    torch.testing.assert_close(weighed.logits.double(), 0.25 * a + 0.75 * c, **tolerance)
    assert not even.features


def test_ensembles_provide_outputs_for_their_members() -> None:
    scheme, batch = build(*VARIANTS["offline-kd-two-teachers"]), random_batch()
    out = {key: value.logits for key, value in scheme.predict(batch, ["teacher"]).items()}
    torch.testing.assert_close(out["teacher"], 0.25 * out["teacher0"] + 0.75 * out["teacher1"], rtol=1e-12, atol=1e-14)
    scheme = build(*SELF)
    out = {key: value.logits for key, value in scheme.predict(batch, ["ensemble"]).items()}
    mean = (out["student"] + out["student/exit1"] + out["student/exit2"]) / 3
    torch.testing.assert_close(out["ensemble"], mean, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", [*DEFAULTS, "online-dml-shared-trunk", "self-byot-ema"])
def test_a_heads_plain_network_gives_the_heads_logits_to_the_last_bit(name: str) -> None:
    scheme = build(*VARIANTS[name])
    steps(scheme.train(), 2, lr=0.01)
    scheme.eval()
    batch = random_batch(seed=9)
    plain = {head: scheme.node_of(head).inference_network(head) for head in scheme.heads}
    assert plain[scheme.heads[0]] is not None
    for head, network in plain.items():
        if network is not None:
            expected: Tensor = scheme.predict(batch, [head])[head].logits
            assert torch.equal(network.eval()(batch.images), expected), head
        else:
            assert "exit" in head or head in ("ensemble", "fused", "self_teacher")


def test_a_network_with_exits_names_its_outputs_and_their_features() -> None:
    out = build(*SELF).predict(random_batch(), ["student"])
    assert list(out) == ["student", "student/exit1", "student/exit2"]
    assert list(out["student"].features) == ["layer1", "layer2", "layer3"]
    assert {key: tuple(value.features["exit"].shape) for key, value in out.items() if "exit" in key} == {
        "student/exit1": (6, 64, 2, 2),
        "student/exit2": (6, 64, 2, 2),
    }


def test_detaching_an_output_keeps_values_and_drops_gradients() -> None:
    network = create_model("resnet20", num_classes=10, channels=1, image_size=8)
    output = Network("student", network)(random_batch(dtype=torch.float32), {})["student"]
    constant = output.detach()
    assert output.logits.requires_grad
    assert torch.equal(constant.logits, output.logits)
    assert not any(t.requires_grad for t in (constant.logits, *constant.features.values()))
    assert list(constant.features) == list(output.features)
