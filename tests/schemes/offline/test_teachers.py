"""The teachers of the offline methods: never changed, and weighted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kdschemes.core.frozen import Frozen
from kdschemes.errors import UserError
from tests.schemes.cases import OFFLINE, START, base, build, configure, random_batch, same_state, state_of
from tests.schemes.offline.cases import steps
from tests.schemes.offline.test_dpkd import TWO_TEACHERS_HINT

CASES = {
    "offline-takd": base("offline", "takd"),
    "offline-camkd": base("offline", "camkd"),
    "offline-dpkd": base("offline", "dpkd"),
    "offline-dpkd-two-teachers-hint": TWO_TEACHERS_HINT,
    "self-ban": base("self", "ban"),
    "self-tfkd_self": base("self", "tfkd_self"),
}


@pytest.mark.parametrize("name", CASES)
def test_teachers_are_bitwise_unchanged_in_weights_and_statistics(name: str) -> None:
    scheme = build(*CASES[name]).train()
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
def test_a_teacher_of_weight_0_has_no_effect(weights: str) -> None:
    two = build(*OFFLINE, "teacher.name=[resnet20,convnet]", f"teacher.weights={weights}", "losses.feature=hint")
    one = build(*OFFLINE, "losses.feature=hint")
    batch = random_batch()
    ours, theirs = two(batch, START), one(batch, START)
    assert ours.total.item() == pytest.approx(theirs.total.item(), rel=1e-12)
    assert ours.losses["kd/teacher->student"].item() == pytest.approx(theirs.losses["kd/teacher->student"].item())


def test_a_teacher_of_plain_images_does_not_see_the_students_view() -> None:
    plain, same = build(*OFFLINE, "teacher.view=plain").train(), build(*OFFLINE).train()
    view, images = random_batch(), random_batch(seed=1)
    assert plain.aux_batches == ("plain",)
    both = plain(replace(view, aux_batches={"plain": images}), START)
    teacher, student = same(images, START).outputs["teacher"], same(view, START).outputs["student"]
    assert torch.equal(both.outputs["teacher"].logits, teacher.logits)
    assert both.outputs["student"].logits.shape == student.logits.shape
    assert torch.equal(plain(view, START).outputs["teacher"].logits, same(view, START).outputs["teacher"].logits)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([*OFFLINE, "data.mixup=0.2"], "would not see the mixed images"),
        ([*OFFLINE, "teacher.cache=logits"], "stored by view"),
        (base("offline", "partial_teacher"), "for frozen teachers"),
    ],
)
def test_a_plain_view_excludes_what_needs_the_students(words: list[str], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        configure(*words, "teacher.view=plain")
