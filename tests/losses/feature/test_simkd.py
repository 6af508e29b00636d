"""Simple distillation: the teacher's classifier reused, from run to export."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kdschemes.config.data import Digits
from kdschemes.config.load import load_config
from kdschemes.config.losses import feature as config
from kdschemes.core.loss import Endpoint, Loss
from kdschemes.core.nodes import LossHead
from kdschemes.core.types import DataSpec
from kdschemes.data import open_data
from kdschemes.errors import UserError
from kdschemes.evaluation.cost import head_costs
from kdschemes.evaluation.evaluate import evaluate
from kdschemes.losses.build import build_loss
from kdschemes.losses.feature.simkd import SimKD, simkd
from kdschemes.models import count_macs, count_parameters, create_model, load_model
from kdschemes.schemes import build_scheme
from kdschemes.training.train import train
from tests.losses.cases import MapCase
from tests.losses.formulas import Array, to_smaller
from tests.losses.inputs import gradients, normal
from tests.losses.stubs import (
    BIG,
    SMALL,
    StubNetwork,
    output,
    side,
    value_of,
)
from tests.schemes.cases import START, network_of, random_batch, trained
from tests.schemes.cases import build as build_method


def formula(student: Array, teacher: Array) -> float:
    ours, theirs = to_smaller(student, teacher)
    return float(((ours - theirs) ** 2).mean())


CASES = {"simkd": MapCase(simkd, formula)}
OPTIONS = [config.SimKD(factor=3)]


SIMKD = [
    "scheme=offline",
    "model=resnet20",
    "teacher=resnet20",
    "losses.response=none",
    "losses.feature=simkd",
]


def made(options: Any, student: Endpoint | None = None, teacher: Endpoint | None = None) -> Loss[Any]:
    torch.manual_seed(0)
    return build_loss(
        options, student=student or side(SMALL), teacher=teacher or side(BIG, frozen=True), data_spec=DataSpec(7, 3, 8)
    )


def test_value_equals_the_formula() -> None:
    s, t = normal(7, 3, 4, 6, 4), normal(8, 3, 4, 3, 8)
    assert simkd(s, t).item() == pytest.approx(formula(s.numpy(), t.numpy()), rel=1e-12)
    assert simkd(s, s) == 0


def test_gradients_of_maps_of_different_size() -> None:
    s, t = normal(9, 4, 5, 6, 4).requires_grad_(), normal(10, 4, 5, 3, 2).requires_grad_()
    assert torch.autograd.gradcheck(simkd, (s, t))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision(dtype: torch.dtype) -> None:
    half = [x.to(dtype) for x in (normal(14, 4, 32, 8, 8).relu(), normal(15, 4, 32, 4, 4).relu())]
    truth = simkd(*(x.double() for x in half)).item()
    plain = simkd(*half)
    with torch.autocast("cpu", dtype=dtype):
        inside = simkd(*half)
    for found in (plain, inside):
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(truth, rel=1e-2)


def test_zeros_and_extremes_are_finite() -> None:
    some, zeros = normal(17, 2, 3, 4, 4).float(), torch.zeros(2, 3, 4, 4)
    for ours in (zeros, some * 1e15, some * 1e-30, zeros + 1000.0):
        for theirs in (zeros, some):
            s, t = ours.clone().requires_grad_(), theirs.clone().requires_grad_()
            value = simkd(s, t)
            assert value.isfinite()
            assert all(g.isfinite().all() for g in gradients(value, s, t))


def test_the_modules_value_is_that_of_the_function() -> None:
    ours, theirs = side(SMALL), side(BIG, frozen=True)
    s, t = output(SMALL, 1), output(BIG, 51)
    f, g = s.features["block3"], t.features["layer3"]
    assert isinstance(theirs.network, StubNetwork)
    assert theirs.network.fc is not None
    loss = made(config.SimKD(factor=3), ours, theirs)
    assert isinstance(loss, SimKD)
    widths = [m.out_channels for m in loss.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [4, 4, 12]
    projected = loss.projector(f)
    assert projected.shape[2:] == (2, 3)
    torch.testing.assert_close(value_of(loss, s, t), simkd(projected, g))
    torch.testing.assert_close(loss.classify(s.features), theirs.network.fc(projected.mean((2, 3))))


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (None, side(BIG, classified=False), r"simkd .*the teacher's linear classifier"),
        (Endpoint(SMALL), None, r"simkd .*the student"),
        (side({"x": (10, 4)}), None, r"'x' is 10 tokens"),
        (Endpoint({}, StubNetwork(None, 7)), None, r"student has no features"),
        (None, side(BIG), r"simkd .*frozen"),
    ],
)
def test_undefined_losses_are_refused_when_built(student: Any, teacher: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        made(config.SimKD(), student, teacher)
    assert "\n" not in str(error.value)


def test_two_teachers_are_refused() -> None:
    with pytest.raises(UserError, match="one teacher"):
        build_method(*SIMKD, "teacher.name=[resnet20,resnet20]")


def test_the_reused_classifier_is_reported_and_only_features_train_the_student() -> None:
    scheme = build_method(*SIMKD).train()
    assert scheme.heads == ("student/simkd", "student")
    assert build_method(*SIMKD, "train.ema=0.9").heads == ("student/simkd", "student", "student/ema")
    teacher = network_of(scheme, "teacher")
    before = copy.deepcopy(teacher.state_dict())
    result = scheme(random_batch(), START)
    assert result.weights["ce/student"] == 0.0
    result.total.backward()
    student = network_of(scheme, "student")
    assert student.linear_classifier().weight.grad.abs().max() == 0  # type: ignore[union-attr]
    torch.optim.SGD(trained(scheme), lr=0.1).step()
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not any("teacher" in name or "classifier" in name for name in scheme.state_dict())
    scheme.eval()
    (node,) = (node for node in scheme.nodes.values() if isinstance(node, LossHead))
    batch = random_batch(seed=3)
    expected = scheme.predict(batch, ["student/simkd"])["student/simkd"].logits
    plain = node.inference_network("student/simkd")
    assert plain is not None
    assert torch.equal(plain.eval()(batch.images), expected)
    assert teacher.state_dict().keys() == before.keys()


@pytest.mark.parametrize("student", ["resnet20", "convnet"])
def test_costs_count_the_student_without_its_classifier_the_projector_and_the_classifier(student: str) -> None:
    data = open_data(Digits(), seed=0, device=torch.device("cpu"))
    scheme = build_method(*SIMKD, f"model={student}", dtype=torch.float32)
    costs = head_costs(scheme, data)
    network, teacher = network_of(scheme, "student"), network_of(scheme, "teacher")
    (term,) = (t for t in scheme.terms if t.name == "simkd/teacher->student")
    own, reused = network.linear_classifier(), teacher.linear_classifier()
    assert own is not None
    assert reused is not None
    backbone = count_parameters(network) - count_parameters(own)
    assert costs["student"] == {"parameters": count_parameters(network), "macs": count_macs(network, 1, 8)}
    assert costs["student/simkd"]["parameters"] == backbone + count_parameters(term) + count_parameters(reused)
    width, positions = own.in_features, 4 if student == "resnet20" else 1
    macs = positions * (width * 32 + 32 * 32 * 9 + 32 * 64) + 10 * 64
    assert costs["student/simkd"]["macs"] == costs["student"]["macs"] - 10 * width + macs


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    teacher = tmp_path_factory.mktemp("teacher") / "weights.pt"
    torch.manual_seed(1)
    torch.save(create_model("resnet20", num_classes=10, channels=1, image_size=8).state_dict(), teacher)
    overrides = [
        *SIMKD,
        "model=convnet",
        f"teacher.checkpoint={teacher}",
        "data=digits",
        "data.val_fraction=0.8",
        "data.train_fraction=1",
        "train.epochs=1",
        "train.ema=0.9",
        "train.num_threads=1",
        f"output_dir={tmp_path_factory.mktemp('runs')}",
    ]
    chosen = load_config(overrides, recipes=Path())
    return chosen, train(chosen)


def test_a_run_exports_the_reported_head(run: Any) -> None:
    chosen, finished = run
    results = json.loads((finished.folder / "results.json").read_text())
    assert results["primary_head"] == "student/simkd"
    assert next(iter(results["heads"])) == "student/simkd"
    assert set(results["heads"]) == {"student/simkd", "student", "student/ema", "teacher"}
    loaded = load_model(finished.folder)
    data = open_data(chosen.data, seed=chosen.seed, device=torch.device("cpu"))
    cost = results["cost"]["student/simkd"]
    assert cost["macs"] == count_macs(loaded, data.channels, data.image_size)
    assert cost["parameters"] == count_parameters(loaded) - 10 * 257
    written = json.loads((finished.folder / "config.json").read_text())
    assert written["metadata"]["head"] == "student/simkd"
    correct = total = 0
    for batch in data.eval_batches("test", batch_size=256, rank=0, world=1):
        with torch.no_grad():
            correct += int((loaded(batch.images).argmax(1) == batch.labels).sum())
        total += len(batch)
    assert 100 * correct / total == pytest.approx(results["heads"]["student/simkd"]["last"]["test"]["top1"], abs=1e-4)


def test_the_exported_network_equals_the_head(run: Any) -> None:
    chosen, finished = run
    data = open_data(chosen.data, seed=chosen.seed, device=torch.device("cpu"))
    scheme = build_scheme(chosen, DataSpec(10, 1, 8, data.train_labels))
    saved = torch.load(finished.folder / "checkpoint.pt", weights_only=True)
    scheme.load_state_dict(saved["scheme"])
    batch = next(iter(data.eval_batches("test", batch_size=64, rank=0, world=1)))
    with torch.no_grad():
        expected = scheme.eval().predict(batch, ["student/simkd"])["student/simkd"].logits
        assert torch.equal(load_model(finished.folder)(batch.images), expected)
    assert evaluate(scheme, [batch], torch.device("cpu")).keys() >= {"student/simkd", "student", "student/ema"}
