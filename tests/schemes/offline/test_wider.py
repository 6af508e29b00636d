"""Offline with several, partly trained, assistant and already trained teachers: what is special to each method."""

from __future__ import annotations

import copy
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdschemes.config.naming import run_name
from kdschemes.config.prerequisites import prerequisite_runs, with_teachers
from kdschemes.config.schemes.offline import OfflineKD
from kdschemes.core.distillation import Distillation
from kdschemes.core.frozen import Frozen
from kdschemes.core.types import Progress
from kdschemes.errors import UserError
from kdschemes.evaluation.evaluate import evaluation_mode
from kdschemes.models import create_model, save_weights
from kdschemes.schemes.offline.camkd import ReadByTeachers, teacher_weights, weighted_hint, weighted_kd
from kdschemes.schemes.offline.dpkd import most_confident
from kdschemes.schemes.offline.partial_teacher import PartlyFrozen
from kdschemes.schemes.offline.teachers import build_teachers
from tests.processes import SignalAtFile, run
from tests.schemes.cases import (
    DATA_SPEC,
    OFFLINE,
    START,
    VARIANTS,
    base,
    batch_for,
    build,
    configure,
    network_of,
    random_batch,
    same_state,
    state_of,
    trained,
)
from tests.schemes.offline import oracles as oracles_offline
from tests.training.test_loop import check_equal, run_folder

CAMKD, PARTIAL, DPKD, TAKD = (base("offline", method) for method in ("camkd", "partial_teacher", "dpkd", "takd"))
LATER = Progress(step=37, total_steps=100, steps_per_epoch=10)


def steps(scheme: Distillation, seeds: range, momentum: float = 0.0) -> None:
    optimizer = torch.optim.SGD(trained(scheme), lr=0.02, momentum=momentum, weight_decay=0.1)
    for seed in seeds:
        optimizer.zero_grad()
        scheme(batch_for(scheme, seed=seed), LATER).total.backward()
        optimizer.step()
        scheme.after_step()


def logits(seed: int, count: int = 3, samples: int = 5, classes: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(count, samples, classes, generator=generator, dtype=torch.float64)


LABELS = torch.tensor([3, 0, 6, 2, 2])


@pytest.mark.parametrize(
    "name",
    ["offline-takd", "offline-camkd", "offline-dpkd", "offline-dpkd-two-teachers-hint", "self-ban", "self-tfkd_self"],
)
def test_teachers_are_bitwise_unchanged_in_weights_and_statistics(name: str) -> None:
    scheme = build(*VARIANTS[name]).train()
    frozen = [node for node in scheme.nodes.values() if isinstance(node, Frozen)]
    before = [state_of(node.network) for node in frozen]
    student = state_of(scheme.nodes["student"])
    steps(scheme, range(3))
    scheme.predict(random_batch(), scheme.heads)
    assert frozen
    assert all(same_state(node.network, state) for node, state in zip(frozen, before, strict=True))
    assert not any(module.training for node in frozen for module in node.network.modules())
    assert not same_state(scheme.nodes["student"], student)


@pytest.mark.parametrize("weights", ["[1,0]", "[3,0]"])
def test_a_teacher_of_weight_0_says_nothing(weights: str) -> None:
    two = build(*OFFLINE, "teacher.name=[resnet20,convnet]", f"teacher.weights={weights}", "losses.feature=hint")
    one = build(*OFFLINE, "losses.feature=hint")
    batch = random_batch()
    ours, theirs = two(batch, START), one(batch, START)
    assert ours.total.item() == pytest.approx(theirs.total.item(), rel=1e-12)
    assert ours.losses["kd/teacher->student"].item() == pytest.approx(theirs.losses["kd/teacher->student"].item())


# Confidence-aware teachers


def test_weights_of_teachers_sum_to_1_and_favor_who_knows_the_label() -> None:
    teachers = logits(0)
    weights = teacher_weights(teachers, LABELS)
    expected = oracles_offline.teacher_weights(list(teachers.numpy()), LABELS.tolist())
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-12)
    torch.testing.assert_close(weights.sum(0), torch.ones(5, dtype=torch.float64), rtol=1e-14, atol=0)
    surprise = -teachers.log_softmax(2).gather(2, LABELS.expand(3, -1)[..., None]).squeeze(2)
    assert torch.equal(weights.argsort(0, descending=True), surprise.argsort(0))
    even = teacher_weights(teachers[:1].repeat(4, 1, 1), LABELS)
    torch.testing.assert_close(even, torch.full_like(even, 0.25))


@pytest.mark.parametrize("scale", [1e4, 1.0])
def test_confidence_of_half_precision_and_huge_logits_is_finite(scale: float) -> None:
    teachers = (scale * logits(1)).bfloat16()
    student = (scale * logits(2)[0]).bfloat16().requires_grad_()
    weights = teacher_weights(teachers, LABELS)
    value = weighted_kd(student, teachers, weights, temperature=4.0)
    value.backward()
    assert weights.dtype == value.dtype == torch.float32
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    for by in ("supervised", "max_probability"):
        assert most_confident(teachers, LABELS, by).shape == (5,)


def test_the_published_form_has_one_more_division_by_the_number_of_teachers() -> None:
    """Teachers that all say the same teach as one does, with 1 / K of its weight."""
    one, student = logits(3)[:1], logits(4)[0]
    several = one.repeat(3, 1, 1)
    value = weighted_kd(student, several, teacher_weights(several, LABELS), temperature=2.0)
    alone = weighted_kd(student, one, torch.ones(1, 5, dtype=torch.float64), temperature=2.0)
    assert value.item() == pytest.approx(alone.item() / 3, rel=1e-12)
    maps = [torch.randn(5, 2, 3, 3, dtype=torch.float64) for _ in range(2)]
    hint = weighted_hint([maps[0]] * 3, [maps[1]] * 3, teacher_weights(several, LABELS))
    assert hint.item() == pytest.approx((maps[0] - maps[1]).square().mean().item() / 3, rel=1e-12)


def test_embedded_maps_are_what_the_teachers_classifiers_read_and_these_learn_nothing() -> None:
    scheme = build(*CAMKD, "model=convnet").train()
    reader = scheme.nodes["embedded"]
    assert isinstance(reader, ReadByTeachers)
    out = scheme.predict(random_batch(), [*reader.provides, "teacher0", "teacher1"])
    for name in ("teacher0", "teacher1"):
        read, teacher = out[f"student/{name}"], network_of(scheme, name)
        assert read.features["embedded"].shape == list(out[name].features.values())[-1].shape
        fc = teacher.linear_classifier()
        assert fc is not None
        torch.testing.assert_close(read.logits, fc(read.features["embedded"].mean((2, 3))))
        assert (read.features["embedded"] >= 0).all()
    scheme(random_batch(), LATER).total.backward()
    assert all(p.grad is not None and p.grad.any() for p in reader.parameters() if p.dim() > 1)
    teachers = [p for name in ("teacher0", "teacher1") for p in network_of(scheme, name).parameters()]
    assert not any(p.grad is not None for p in teachers)


@pytest.mark.parametrize("through", [True, False])
def test_weights_of_the_feature_term_pass_a_gradient_on_as_the_option_says(through: bool) -> None:
    scheme = build(*CAMKD, f"scheme.grad_through_weights={str(through).lower()}")
    (term,) = [term for term in scheme.terms if term.name == "camkd_hint/teachers->student"]
    batch = random_batch()
    outputs = scheme.predict(batch, term.reads)
    readings = [outputs[f"student/teacher{k}"].logits for k in (0, 1)]
    gradients = torch.autograd.grad(term(outputs, batch), readings, retain_graph=True, allow_unused=True)
    assert [gradient is not None and bool(gradient.any()) for gradient in gradients] == [through] * 2
    (gradient,) = torch.autograd.grad(term(outputs, batch), list(outputs["student"].features.values())[-1])
    assert gradient.isfinite().all()


def test_the_feature_term_waits() -> None:
    scheme, batch = build(*CAMKD), random_batch()
    weights = [scheme(batch, Progress(step, 100, 10)).weights["camkd_hint/teachers->student"] for step in (0, 9, 10)]
    assert weights == [0.0, 0.0, 50.0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([*CAMKD, "teacher=resnet20"], "camkd needs two or more teachers, not teacher.name=resnet20"),
        ([*CAMKD, "teacher.weights=[1,2]"], "teacher.weights has no effect with method=camkd"),
        ([*PARTIAL, "teacher.name=[resnet20,convnet]"], "method=partial_teacher trains one teacher, not 2"),
        ([*PARTIAL, "scheme.trained_from=layer9"], "unknown stage of resnet20 'layer9'"),
        ([*PARTIAL, "teacher=convnet", "scheme.trained_from=stage1"], "nothing comes before stage1 of convnet"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build(*overrides)
    assert "\n" not in str(caught.value)


def test_a_teacher_that_cannot_be_cut_or_read_is_refused() -> None:
    data_spec = copy.copy(DATA_SPEC)
    object.__setattr__(data_spec, "channels", 3)
    object.__setattr__(data_spec, "image_size", 32)
    with pytest.raises(UserError, match="cannot be cut"):
        build(*PARTIAL, "teacher=timm/test_vit", data_spec=data_spec)
    with pytest.raises(UserError, match=r"camkd needs each teacher's linear classifier .* timm/test_vit has none"):
        build(*CAMKD, "teacher=[resnet20,timm/test_vit]", data_spec=data_spec)


# A partly trained teacher


@pytest.mark.parametrize("stage", ["last", "layer2", "layer1"])
def test_the_frozen_part_is_bitwise_unchanged_and_all_the_rest_moves(stage: str) -> None:
    scheme = build(*PARTIAL, f"scheme.trained_from={stage}").train()
    node = scheme.nodes["teacher"]
    assert isinstance(node, PartlyFrozen)
    trunk, branch, student = state_of(node.trunk), state_of(node.branch), state_of(scheme.nodes["student"])
    assert any("running_mean" in name for name in trunk)
    steps(scheme, range(2))
    with evaluation_mode(scheme):
        scheme.predict(random_batch(), scheme.heads)
    scheme.train()
    steps(scheme, range(2, 4))
    assert node.branch.training
    assert not any(module.training for module in node.trunk.modules())
    assert same_state(node.trunk, trunk)
    for now, before in ((node.branch, branch), (scheme.nodes["student"], student)):
        assert all(not torch.equal(now.state_dict()[name], value) for name, value in before.items())
    assert {id(p) for p in trained(node)} == {id(p) for p in node.branch.parameters()}
    stages = ["layer1", "layer2", "layer3"]
    trained_stages = stages[stages.index(stage) :] if stage != "last" else stages[-1:]
    assert {name.partition(".")[0] for name in branch} == {*trained_stages, "fc"}
    assert same_state(network_of(scheme, "teacher"), node.trunk.state_dict() | node.branch.state_dict())


def test_nothing_changes_over_a_resume() -> None:
    whole = build(*PARTIAL).train()
    start = state_of(whole.nodes["teacher"].trunk)
    steps(whole, range(2))
    saved = copy.deepcopy(whole.state_dict())
    steps(whole, range(2, 4))
    again = build(*PARTIAL, "teacher.seed=9").train()
    again.load_state_dict(saved)
    steps(again, range(2, 4))
    assert same_state(again, whole)
    assert same_state(again.nodes["teacher"].trunk, start)


def test_a_teacher_that_is_trained_from_all_on_is_trained_whole() -> None:
    scheme = build(*PARTIAL, "scheme.trained_from=all", "scheme.teacher_lr_multiplier=0.5").train()
    before = state_of(scheme.nodes["teacher"])
    assert scheme.lr_multipliers == {"teacher": 0.5}
    steps(scheme, range(1))
    assert all(not torch.equal(value, before[name]) for name, value in scheme.nodes["teacher"].state_dict().items())
    assert scheme.heads == ("student", "teacher")


def test_each_side_of_a_partly_trained_teacher_learns_from_its_own_terms() -> None:
    scheme, batch = build(*PARTIAL), random_batch()
    outputs = scheme.predict(batch, scheme.heads)
    for term in scheme.terms:
        other = {"student": "teacher", "teacher": "student"}[term.target]
        value = term(outputs, batch)
        own, theirs = trained(scheme.nodes[term.target]), trained(scheme.nodes[other])
        gradients = torch.autograd.grad(value, [*own, *theirs], retain_graph=True, allow_unused=True)
        assert all(gradient is not None for gradient in gradients[: len(own)]), term.name
        assert all(gradient is None for gradient in gradients[len(own) :]), term.name


# Trained peers


def test_the_surer_one_is_believed_and_of_equals_the_first() -> None:
    members = logits(5)
    for by in ("supervised", "max_probability"):
        chosen = most_confident(members, LABELS, by)
        expected = oracles_offline.most_confident(list(members.numpy()), LABELS.tolist(), by)
        assert torch.equal(members[chosen, torch.arange(5)], torch.from_numpy(expected))
        assert not most_confident(members[:1].repeat(3, 1, 1), LABELS, by).any()
        assert torch.equal(most_confident(members[:, :1], LABELS[:1], by), chosen[:1])
    sure_and_wrong = torch.tensor([[[2.0, 0.0]], [[0.0, 9.0]]])
    label = torch.tensor([0])
    assert most_confident(sure_and_wrong, label, "supervised").tolist() == [0]
    assert most_confident(sure_and_wrong, label, "max_probability").tolist() == [1]


def test_confidence_is_of_probabilities_and_not_of_logits() -> None:
    members = torch.tensor([[[3.0, 0.0, 0.0]], [[90.0, 89.5, 89.0]]])
    assert most_confident(members, torch.tensor([0]), "max_probability").tolist() == [0]
    assert most_confident(members, torch.tensor([0]), "supervised").tolist() == [0]


def test_the_target_is_made_of_the_start_and_the_teacher() -> None:
    scheme, batch = build(*DPKD).train(), random_batch(n=40)
    out = {name: output.logits for name, output in scheme.predict(batch, ["target"]).items()}
    probability = {name: z.softmax(1).gather(1, batch.labels[:, None]) for name, z in out.items()}
    teacher = probability["teacher"] > probability["start"]
    assert teacher.any()
    assert not teacher.all()
    assert torch.equal(out["target"], torch.where(teacher, out["teacher"], out["start"]))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of weights of a `teacher` (ResNet-20) and of a `student` (convnet)."""
    place, found = tmp_path_factory.mktemp("weights"), {}
    with torch.random.fork_rng(devices=[]):
        for role, model in (("teacher", "resnet20"), ("student", "convnet")):
            torch.manual_seed(len(role))
            save_weights(create_model(model, num_classes=10, channels=1, image_size=8), place / role)
            found[role] = str(place / role)
    return found


def test_the_start_is_the_initial_student_after_a_resume_too(weights: dict[str, str]) -> None:
    overrides = [*base("offline", "dpkd", "convnet"), f"model.checkpoint={weights['student']}"]
    scheme = build(*overrides).train()
    start = state_of(network_of(scheme, "start"))
    assert same_state(network_of(scheme, "student"), start)
    steps(scheme, range(3))
    saved = scheme.state_dict()
    assert not any("start" in name for name in saved)
    again = build(*overrides).train()
    again.load_state_dict(saved)
    assert same_state(network_of(again, "start"), start)
    assert same_state(network_of(again, "student"), network_of(scheme, "student"))
    assert not same_state(network_of(again, "student"), start)


def test_an_untrained_student_has_nothing_to_go_on_from(weights: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dpkd continues from a trained student: give model\.checkpoint="):
        prerequisite_runs(configure(*DPKD))
    ended = run([*DPKD, "train.num_threads=1"], tmp_path / "run")
    assert (ended.code, ended.err.count("\n"), list((tmp_path / "run").iterdir())) == (2, 1, [])
    peer = configure(*base("offline", "dpkd", "convnet"), f"model.checkpoint={weights['student']}")
    assert [run.model.name for run in prerequisite_runs(peer)] == ["resnet20"]


SMALL = [
    "data.val_fraction=0.9",
    "train.batch_size=32",
    "train.epochs=1",
    "train.num_threads=1",
    "train.checkpoint_every_steps=3",
]


@pytest.mark.parametrize("method", ["partial_teacher", "dpkd"])
def test_a_run_that_is_killed_goes_on_exactly(method: str, weights: dict[str, str], tmp_path: Path) -> None:
    arguments = [*base("offline", method, "convnet"), f"teacher.checkpoint={weights['teacher']}", *SMALL]
    arguments.append(f"model.checkpoint={weights['student']}")
    assert run(arguments, tmp_path / "whole").code == 0
    killed = run(arguments, tmp_path / "run", SignalAtFile(signal.SIGKILL, 4, ("os.rename",)))
    assert killed.code == -signal.SIGKILL
    assert (run_folder(tmp_path / "run") / "checkpoint.pt").exists()
    ended = run(arguments, tmp_path / "run")
    assert (ended.code, ended.err) == (0, "")
    assert "resuming from step" in ended.out
    check_equal(tmp_path / "run", tmp_path / "whole")


# A chain of assistants


def test_each_assistant_is_a_run_that_those_before_it_teach() -> None:
    chain = ["scheme.assistants=[resnet56,resnet32,convnet]", "teacher=resnet110", "teacher.seed=4", "teacher.epochs=9"]
    config = configure(*TAKD, *chain, "seed=7", "train.ema=0.9")
    found: list[Any] = []
    while (earlier := prerequisite_runs(found[-1] if found else config)) != []:
        found += earlier
    assert [run.model.name for run in found] == ["convnet", "resnet32", "resnet56", "resnet110"]
    assert [run.scheme.method for run in found] == ["takd", "takd", "kd", "ce"]
    assert {run.seed for run in found} == {4}
    assert {(run.train.epochs, run.train.ema) for run in found} == {(9, None)}
    assert found[2].scheme == OfflineKD(alpha=config.scheme.alpha)
    others = [configure(*TAKD, *chain, seed) for seed in ("seed=1", "seed=2")]
    (first,), (second,) = (prerequisite_runs(other) for other in others)
    assert run_name(first) == run_name(second) == run_name(found[0])


def test_a_given_teacher_teaches_the_first_assistant_alone(weights: dict[str, str]) -> None:
    config = configure(*TAKD, f"teacher.checkpoint={weights['teacher']}", "scheme.assistants=[convnet]")
    (assistant,) = prerequisite_runs(config)
    assert assistant.teacher.checkpoint == weights["teacher"]
    assert prerequisite_runs(assistant) == []
    for folders in (None, [weights["student"]]):
        resolved = with_teachers(config, folders)
        assert (resolved.teacher.name, resolved.teacher.checkpoint) == (["convnet"], folders)
        (node,) = build_teachers(resolved, DATA_SPEC).frozen
        assert node.network.spec.name == "convnet"


def test_students_share_a_chain_of_runs(tmp_path: Path) -> None:
    arguments = ["scheme=offline", "method=takd", "model=convnet", "teacher=convnet", *SMALL]
    arguments += ["scheme.assistants=[resnet20,convnet]", "teacher.seed=3"]
    place = tmp_path / "run"
    first = run(arguments, place)
    assert (first.code, first.err) == (0, "")
    chain = {path: path.stat().st_mtime_ns for path in place.glob("runs/*-seed3-*/model.safetensors")}
    names = sorted(path.parent.name.rpartition("-")[0] for path in chain)
    assert names == [
        "offline-kd-digits-resnet20-seed3",
        "offline-takd-digits-convnet-seed3",
        "supervised-ce-digits-convnet-seed3",
    ]
    second = run([*arguments, "seed=1"], place)
    assert (second.code, second.err) == (0, "")
    assert {path: path.stat().st_mtime_ns for path in chain} == chain
    students = list(place.glob("runs/offline-takd-digits-convnet-seed[01]-*"))
    assert len(students) == 2
    for folder in students:
        (teacher,) = json.loads((folder / "results.json").read_text())["teacher_checkpoint"]
        assert Path(teacher).name.startswith("offline-takd-digits-convnet-seed3-")
        again = run([f"experiment={folder / 'config.yaml'}"], place)
        assert again.code == 0
        assert f"this run is already finished: runs/{folder.name}" in again.out
