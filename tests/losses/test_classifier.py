"""Losses that read features by a linear classifier: against loop oracles, as modules, and SimKD from run to export."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

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
from kdschemes.losses.feature.cat_kd import CATKD, cat_kd, class_activation
from kdschemes.losses.feature.hint import hint
from kdschemes.losses.feature.simkd import SimKD, simkd
from kdschemes.losses.feature.srrl import SRRL, srrl
from kdschemes.models import count_macs, count_parameters, create_model, load_model
from kdschemes.schemes import build_scheme
from kdschemes.training.train import train
from tests.losses import oracles_channels as oracle
from tests.losses.stub_networks import StubNetwork, side
from tests.losses.test_channels import BIG, SMALL, gradients, output, random, value_of
from tests.schemes.cases import START, build, network_of, random_batch, trained

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


@pytest.mark.parametrize(
    ("student", "teacher"), [((3, 5, 8, 8), (3, 5, 8, 8)), ((2, 4, 6, 3), (2, 4, 5, 7)), ((1, 3, 2, 2), (1, 3, 1, 4))]
)
@pytest.mark.parametrize("resolution", [1, 2, 3])
@pytest.mark.parametrize("normalize", [True, False])
def test_cat_kd_equals_the_oracle(
    student: tuple[int, ...], teacher: tuple[int, ...], resolution: int, normalize: bool
) -> None:
    s, t = random(0, *student, scale=3.0), random(1, *teacher)
    value = cat_kd(s, t, resolution=resolution, normalize=normalize)
    truth = oracle.cat_kd(s.numpy(), t.numpy(), resolution=resolution, normalize=normalize)
    assert value.item() == pytest.approx(truth, rel=1e-10, abs=1e-25)


def test_class_activation_maps_average_to_the_logits() -> None:
    f, layer = random(2, 3, 6, 4, 5), nn.Linear(6, 4).double()
    maps = class_activation(f, layer.weight)
    torch.testing.assert_close(
        maps.detach(), torch.from_numpy(oracle.class_activation(f.numpy(), layer.weight.detach().numpy()))
    )
    torch.testing.assert_close(maps.mean((2, 3)) + layer.bias, layer(f.mean((2, 3))))
    torch.testing.assert_close(class_activation(f.to(memory_format=torch.channels_last), layer.weight), maps)


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.0, 2.0), (3.0, 0.0)])
def test_srrl_equals_the_oracle(alpha: float, beta: float) -> None:
    s, t, weight, bias = random(3, 4, 6), random(4, 4, 6), random(5, 7, 6), random(6, 7)
    truth = oracle.srrl(*(x.numpy() for x in (s, t, weight, bias)), alpha=alpha, beta=beta)
    assert srrl(s, t, classifier=weight, alpha=alpha, beta=beta).item() == pytest.approx(truth, rel=1e-10)
    near = t.float() + 1e-4 * s.float()
    exact = oracle.srrl(
        near.double().numpy(), t.float().double().numpy(), weight.numpy(), bias.numpy(), alpha=1, beta=1
    )
    assert srrl(near, t.float(), classifier=weight.float()).item() == pytest.approx(exact, rel=1e-4)


def test_simkd_is_a_mean_square_after_pooling() -> None:
    s, t = random(7, 3, 4, 6, 4), random(8, 3, 4, 3, 8)
    ours, theirs = oracle.to_smaller(s.numpy(), t.numpy())
    assert simkd(s, t).item() == pytest.approx(float(((ours - theirs) ** 2).mean()), rel=1e-12)
    assert simkd(s, s) == 0


def test_properties() -> None:
    s, t = random(9, 4, 5, 6, 4).requires_grad_(), random(10, 4, 5, 3, 2).requires_grad_()
    order, classes = torch.tensor([2, 0, 3, 1]), torch.tensor([4, 2, 0, 1, 3])
    for normalize in (True, False):
        value = cat_kd(s, t, normalize=normalize)
        torch.testing.assert_close(cat_kd(s[order], t[order], normalize=normalize), value)
        torch.testing.assert_close(cat_kd(s[:, classes], t[:, classes], normalize=normalize), value)
        rows = [cat_kd(s[i : i + 1], t[i : i + 1], normalize=normalize) for i in range(4)]
        torch.testing.assert_close(torch.stack(rows).mean(), value)
        equal = cat_kd(t.clone(), t, normalize=normalize)
        assert equal == 0
        assert gradients(equal, t)[0].abs().max() == 0
        assert torch.autograd.gradcheck(lambda a, b, n=normalize: cat_kd(a, b, normalize=n), (s, t))
    torch.testing.assert_close(cat_kd(1e3 * s, 1e-3 * t, normalize=True), cat_kd(s, t, normalize=True))
    weights = random(11, 3, 5).requires_grad_()
    assert torch.autograd.gradcheck(class_activation, (s, weights))
    a, b = random(12, 3, 5).requires_grad_(), random(13, 3, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y, w: srrl(x, y, classifier=w), (a, b, weights))
    assert torch.autograd.gradcheck(simkd, (s, t))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    def values(s: Tensor, t: Tensor, w: Tensor) -> list[Tensor]:
        maps = class_activation(s, w), class_activation(t, w)
        pooled = s.mean((2, 3), dtype=torch.promote_types(s.dtype, torch.float32)), t[:, :, 0, 0]
        return [cat_kd(*maps), cat_kd(*maps, normalize=True), srrl(*pooled, classifier=w), simkd(s, t)]

    half = [x.to(dtype) for x in (random(14, 4, 32, 8, 8).relu(), random(15, 4, 32, 4, 4).relu(), random(16, 10, 32))]
    truth = [v.item() for v in values(*(x.double() for x in half))]
    plain = values(*half)
    with torch.autocast("cpu", dtype=dtype):
        inside = values(*half)
    for found in (plain, inside):
        assert all(v.dtype == torch.float32 for v in found)
        assert [v.item() for v in found] == pytest.approx(truth, rel=1e-2)


def test_zeros_and_extremes_are_finite() -> None:
    some, zeros = random(17, 2, 3, 4, 4).float(), torch.zeros(2, 3, 4, 4)
    for ours in (zeros, some * 1e15, some * 1e-30, zeros + 1000.0):
        for theirs in (zeros, some):
            s, t = ours.clone().requires_grad_(), theirs.clone().requires_grad_()
            for value in (cat_kd(s, t, normalize=True), cat_kd(s, t), simkd(s, t)):
                assert value.isfinite()
                assert all(g.isfinite().all() for g in gradients(value, s, t))
    s = zeros.clone().requires_grad_()
    assert gradients(cat_kd(s, some, normalize=True), s)[0].abs().max() == 0


@pytest.mark.parametrize(
    "options", [config.SRRL(), config.CATKD(), config.CATKD(normalize=True), config.SimKD()], ids=str
)
@pytest.mark.parametrize(
    ("student", "teacher"),
    [(SMALL, BIG), (BIG, SMALL), ({"t": (16, 6)}, {"m": (9, 4, 3)}), ({"m": (9, 4, 3)}, {"t": (16, 6)})],
)
def test_modules_teach_the_student_and_their_parameters_alone(options: Any, student: Any, teacher: Any) -> None:
    ours, theirs = side(student), side(teacher, frozen=True)
    loss = made(options, ours, theirs)
    assert isinstance(ours.network, StubNetwork)
    assert isinstance(theirs.network, StubNetwork)
    held = {id(m) for m in loss.modules()}
    assert not held & {id(m) for network in (ours.network, theirs.network) for m in network.modules()}
    s, t = output(student, 0), output(teacher, 50)
    value = value_of(loss, s, t)
    value.backward()
    assert value > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())
    for result in (s, t):
        gradient = list(result.features.values())[-1].grad
        assert gradient is not None
        assert gradient.abs().sum() > 0
    assert ours.network.fc is not None
    assert theirs.network.fc is not None
    assert all(p.grad is None for p in theirs.network.parameters())
    reached = ours.network.fc.weight.grad is not None
    assert reached == isinstance(loss, CATKD)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert value_of(loss, s, t).item() == pytest.approx(value.item(), rel=2e-2)


def test_values_of_modules_are_those_of_the_functions() -> None:
    ours, theirs = side(SMALL), side(BIG, frozen=True)
    s, t = output(SMALL, 1), output(BIG, 51)
    f, g = s.features["block3"], t.features["layer3"]
    assert isinstance(ours.network, StubNetwork)
    assert isinstance(theirs.network, StubNetwork)
    assert ours.network.fc is not None
    assert theirs.network.fc is not None
    expected = cat_kd(class_activation(f, ours.network.fc.weight), class_activation(g, theirs.network.fc.weight))
    assert value_of(made(config.CATKD(), ours, theirs), s, t) == expected
    loss = made(config.SRRL(alpha=2.0, beta=0.5), ours, theirs)
    assert isinstance(loss, SRRL)
    adapted = loss.connector(f).mean((2, 3))
    logits = theirs.network.fc(adapted), theirs.network.fc(g.mean((2, 3)))
    torch.testing.assert_close(value_of(loss, s, t), 2 * hint(adapted, g.mean((2, 3))) + 0.5 * hint(*logits))
    loss = made(config.SimKD(factor=3), ours, theirs)
    assert isinstance(loss, SimKD)
    widths = [m.out_channels for m in loss.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [4, 4, 12]
    projected = loss.projector(f)
    assert projected.shape[2:] == (2, 4)
    torch.testing.assert_close(value_of(loss, s, t), hint(projected, g))
    torch.testing.assert_close(loss.classify(s.features), theirs.network.fc(projected.mean((2, 3))))


def test_weights_are_read_from_the_live_classifier() -> None:
    ours, theirs = side(SMALL), side(BIG, frozen=True)
    loss = made(config.CATKD(), ours, theirs)
    s, t = output(SMALL, 2), output(BIG, 52)
    before = value_of(loss, s, t)
    for network in (ours.network, theirs.network):
        assert network is not None
        with torch.no_grad():
            network.to(torch.bfloat16)
            for p in network.parameters():
                p.mul_(2.0)
    assert value_of(loss, s, t).item() == pytest.approx(4.0 * before.item(), rel=1e-2)


WITHOUT = side(BIG, classified=False)


@pytest.mark.parametrize(
    ("options", "student", "teacher", "message"),
    [
        (config.SRRL(), None, WITHOUT, r"srrl needs the teacher's linear classifier .* stub has none"),
        (config.SRRL(), None, Endpoint(BIG), r"srrl needs the teacher's .* is not a whole network"),
        (config.SRRL(alpha=0.0, beta=0.0), None, None, r"compares nothing"),
        (config.CATKD(), side(SMALL, classified=False), None, r"cat_kd needs the student's linear classifier"),
        (config.CATKD(), None, WITHOUT, r"cat_kd needs the teacher's linear classifier"),
        (config.CATKD(normalize=True), side({"v": (8, 1, 1)}), None, r"the map of 'v' is 1x1"),
        (config.CATKD(normalize=True, resolution=1), None, None, r"only signs"),
        (config.SimKD(), None, WITHOUT, r"simkd needs the teacher's linear classifier"),
        (config.SimKD(), Endpoint(SMALL), None, r"simkd .* the student is not a whole network"),
        (config.SimKD(), side({"x": (10, 4)}), None, r"stage 'x' is 10 tokens"),
        (config.SimKD(), StubNetwork(None, 7), None, r"the student has no features"),
    ],
)
def test_what_cannot_be_defined_is_refused_when_built(options: Any, student: Any, teacher: Any, message: str) -> None:
    student = Endpoint({}, student) if isinstance(student, StubNetwork) else student
    with pytest.raises(UserError, match=message) as error:
        made(options, student, teacher)
    assert "\n" not in str(error.value)


def test_a_teacher_that_is_trained_too_cannot_lend_its_classifier() -> None:
    with pytest.raises(UserError, match=r"simkd .* frozen"):
        build_loss(config.SimKD(), student=side(SMALL), teacher=side(BIG), data_spec=DataSpec(7, 3, 8))


def test_one_teacher_lends_its_classifier() -> None:
    with pytest.raises(UserError, match="choose one teacher"):
        build(*SIMKD, "teacher.name=[resnet20,resnet20]")


def test_simkd_reports_the_reused_classifier_and_trains_the_student_by_features_alone() -> None:
    scheme = build(*SIMKD).train()
    assert scheme.heads == ("student/simkd", "student")
    assert build(*SIMKD, "train.ema=0.9").heads == ("student/simkd", "student", "student/ema")
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
    scheme = build(*SIMKD, f"model={student}", dtype=torch.float32)
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
