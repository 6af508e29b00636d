"""A teacher whose last part is trained together with the student."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from kdschemes.evaluation.evaluate import evaluation_mode
from kdschemes.schemes.offline.partial_teacher import PartlyFrozen
from tests.schemes.cases import (
    ARCHITECTURES,
    base,
    build,
    check_refused,
    network_of,
    random_batch,
    same_state,
    state_of,
    trained,
)
from tests.schemes.formulas import Formula, Seen
from tests.schemes.offline.cases import check_killed, hard_and_soft, steps

PARTIAL = base("offline", "partial_teacher")


def expected_total(seen: Seen) -> float:
    """CE and KD of both networks, each taught by the other."""
    scheme, temperature = seen.config.scheme, seen.config.losses.response.temperature
    student, teacher = seen.logits("student"), seen.logits("teacher")
    ours = {"hard": scheme.ce_weight, "alpha": scheme.alpha, "temperature": temperature}
    theirs = {"hard": scheme.teacher_ce_weight, "alpha": scheme.teacher_alpha, "temperature": temperature}
    total = hard_and_soft(student, teacher, seen.labels, **ours)
    return total + hard_and_soft(teacher, student, seen.labels, **theirs)


FORMULA: Formula = expected_total
EXACT = {
    "partial_teacher-other": [
        *[*PARTIAL, "scheme.trained_from=layer2", "scheme.alpha=0.6", "scheme.ce_weight=0.2"],
        *["scheme.teacher_ce_weight=0.3", "scheme.teacher_alpha=0.7", "losses.response.temperature=2"],
    ],
    "partial_teacher-all": [*PARTIAL, "scheme.trained_from=all"],
}
VARIANTS = {
    "offline-partial_teacher-layer2-hint": [*PARTIAL, "scheme.trained_from=layer2", "losses.feature=hint"],
    "offline-partial_teacher-all": [*PARTIAL, "scheme.trained_from=all"],
}


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


def test_a_resumed_training_gives_the_same_weights() -> None:
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


def test_a_teacher_trained_from_all_is_trained_as_a_whole() -> None:
    scheme = build(*PARTIAL, "scheme.trained_from=all", "scheme.teacher_lr_multiplier=0.5").train()
    before = state_of(scheme.nodes["teacher"])
    assert scheme.lr_multipliers == {"teacher": 0.5}
    steps(scheme, range(1))
    assert all(not torch.equal(value, before[name]) for name, value in scheme.nodes["teacher"].state_dict().items())
    assert scheme.heads == ("student", "teacher")


def test_student_and_teacher_each_learn_from_their_own_terms() -> None:
    scheme, batch = build(*PARTIAL), random_batch()
    outputs = scheme.predict(batch, scheme.heads)
    for term in scheme.terms:
        other = {"student": "teacher", "teacher": "student"}[term.target]
        value = term(outputs, batch)
        own, theirs = trained(scheme.nodes[term.target]), trained(scheme.nodes[other])
        gradients = torch.autograd.grad(value, [*own, *theirs], retain_graph=True, allow_unused=True)
        assert all(gradient is not None for gradient in gradients[: len(own)]), term.name
        assert all(gradient is None for gradient in gradients[len(own) :]), term.name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["teacher.name=[resnet20,convnet]"], "method=partial_teacher .* not 2"),
        (["scheme.trained_from=layer9"], "resnet20 'layer9'"),
        (["teacher=convnet", "scheme.trained_from=stage1"], "stage1 of convnet"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(options: list[str], message: str) -> None:
    check_refused([*PARTIAL, *options], message)


def test_a_teacher_that_cannot_be_cut_is_refused() -> None:
    check_refused([*PARTIAL, "teacher=timm/test_vit"], "timm/test_vit", ARCHITECTURES["timm/test_vit"])


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_run_that_is_killed_resumes_exactly(weights: dict[str, str], tmp_path: Path) -> None:
    check_killed("partial_teacher", weights, tmp_path)
