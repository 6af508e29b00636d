"""The teachers of the offline methods: never changed, and weighted."""

from __future__ import annotations

import pytest

from kdschemes.core.frozen import Frozen
from tests.schemes.cases import OFFLINE, START, base, build, random_batch, same_state, state_of
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
