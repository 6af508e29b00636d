"""The losses of edges between nodes: which there are, with which weights, and what is refused."""

from __future__ import annotations

import pytest

from kdschemes.errors import UserError
from tests.schemes.cases import OFFLINE, ONLINE, SELF, START, build, check_refused, random_batch, trained


@pytest.mark.parametrize("feature", ["hint", "at"])
@pytest.mark.parametrize("relation", ["rkd", "fsp"])
@pytest.mark.parametrize("scheme", ["offline", "online", "self"])
def test_feature_and_relation_losses_work_in_every_scheme(scheme: str, feature: str, relation: str) -> None:
    overrides = [*{"offline": OFFLINE, "online": ONLINE, "self": SELF}[scheme], "losses.response=kd"]
    overrides += [f"losses.feature={feature}", f"losses.relation={relation}"]
    if scheme == "self" and relation == "fsp":
        with pytest.raises(UserError, match=r"fsp .*two stage pairs"):
            build(*overrides)
        return
    scheme_under_test = build(*overrides)
    result = scheme_under_test(random_batch(), START)
    edges = {name.partition("/")[2] for name in result.losses if not name.startswith("ce/")}
    assert {f"{loss}/{edge}" for loss in ("kd", feature, relation) for edge in edges} <= result.losses.keys()
    assert all(value > 0 for value in result.losses.values())
    result.total.backward()
    assert all(p.grad is not None for p in trained(scheme_under_test))


def test_alpha_is_of_the_response_alone_and_several_teachers_share_the_other_weights() -> None:
    weights = build(*OFFLINE, "losses.feature=hint", "scheme.alpha=0.3")(random_batch(), START).weights
    assert weights == pytest.approx({"ce/student": 0.7, "kd/teacher->student": 0.3, "hint/teacher->student": 100.0})
    weights = build(*OFFLINE, "losses.response=none", "losses.relation=rkd")(random_batch(), START).weights
    assert weights == {"ce/student": 1.0, "rkd/teacher->student": 1.0}
    overrides = [
        *OFFLINE,
        "teacher.name=[resnet20,convnet]",
        "teacher.weights=[1,3]",
        "losses.relation=rkd",
        "losses.relation.weight=2",
    ]
    weights = build(*overrides)(random_batch(), START).weights
    assert {"rkd/teacher0->student": 0.5, "rkd/teacher1->student": 1.5}.items() <= weights.items()
    assert {name for name in weights if name.startswith("kd/")} == {"kd/teacher->student"}
    assert "rkd/teacher->student" not in weights
    weights = build(*SELF, "losses.response=none", "losses.feature=none")(random_batch(), START).weights
    assert weights == {"ce/student": 1.0, "ce/student/exit1": 1.0, "ce/student/exit2": 1.0}
    weights = build(*ONLINE, "scheme.peers=3", "losses.relation=rkd")(random_batch(), START).weights
    assert weights["kd/peer0->peer2"] == weights["rkd/peer2->peer1"] == 0.5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([*SELF, "losses.relation=fsp"], "fsp .*two stage pairs"),
        ([*SELF, "model=convnet", "losses.feature=at"], "at needs more than one position"),
        ([*OFFLINE, "losses.feature=hint", "losses.feature.stages=[layer9:layer1]"], "student .*'layer9'"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(overrides: list[str], message: str) -> None:
    check_refused(overrides, message)
