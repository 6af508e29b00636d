"""The initial weights of a scheme's networks, and what a builder refuses."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from kdschemes.core.types import DataSpec
from kdschemes.errors import UserError
from kdschemes.models import create_model, save_weights
from tests.schemes.cases import DEFAULTS, OFFLINE, ONLINE, SELF, build, check_refused, network_of, same_state

BORN_AGAIN = ("self-ban", "self-tfkd_self")
"""Methods whose teacher was trained from the student's usual initial weights, so that the student has others."""


def test_the_student_has_the_same_initial_weights_in_every_scheme_and_each_peer_its_own() -> None:
    names = [name for name in DEFAULTS if not name.startswith("online") and name not in BORN_AGAIN]
    students = [network_of(build(*DEFAULTS[name]), "student") for name in names]
    assert len(students) > 3
    assert all(same_state(students[0], other) for other in students[1:])
    for name in BORN_AGAIN:
        assert not same_state(students[0], network_of(build(*DEFAULTS[name]), "student"))
    peers = build(*ONLINE, "scheme.peers=3")
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


def test_a_teacher_is_for_the_classes_of_the_data(tmp_path: Path) -> None:
    names = tuple("0123456789")
    data, other = (DataSpec(10, 1, 8, classes=classes) for classes in (names, (*names[1:], "ten")))
    network = network_of(build(*OFFLINE, data_spec=data), "teacher").float()
    save_weights(network, tmp_path / "same", metadata={"classes": list(names)})
    save_weights(network, tmp_path / "turned", metadata={"classes": list(names[::-1])})
    same, turned = (
        network_of(build(*OFFLINE, f"teacher.checkpoint={tmp_path / name}", data_spec=data), "teacher")
        for name in ("same", "turned")
    )
    assert same_state(same, network.to(next(same.parameters()).dtype))
    assert torch.equal(turned.fc.weight, same.fc.weight.flip(0))
    assert torch.equal(turned.fc.bias, same.fc.bias.flip(0))
    with pytest.raises(UserError, match=r"same is for other classes than the data: '0' only in .*, 'ten' only in the"):
        build(*OFFLINE, f"teacher.checkpoint={tmp_path / 'same'}", data_spec=other)


def test_a_student_with_a_new_classifier(tmp_path: Path) -> None:
    other = create_model("convnet", num_classes=100, channels=3, image_size=8)
    save_weights(other, tmp_path)
    start = [*DEFAULTS["supervised-ce"], "model=convnet", f"model.checkpoint={tmp_path}"]
    fresh = network_of(build(*start[:-1]), "student")
    network = network_of(build(*start, "model.head=new"), "student")
    assert torch.equal(network.get_parameter("fc.weight"), fresh.get_parameter("fc.weight"))
    assert torch.equal(network.get_parameter("stage4.conv2.weight").float(), other.get_parameter("stage4.conv2.weight"))
    assert network.notes == (
        f"{tmp_path}: new classifier for 10 classes; stage1.conv1.weight is summed over RGB, because the data is gray",
    )
    check_refused(start, "model.head=new")
    with pytest.raises(UserError, match=r"model.head=new replaces the classifier of model.checkpoint"):
        build(*start[:-1], "model.head=new")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([*SELF, "scheme.exits=[layer3]"], "layer3"),
        ([*SELF, "scheme.exits=[stage1]"], "resnet20 'stage1'"),
        ([*OFFLINE, "teacher.checkpoint=/nowhere"], "/nowhere"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(overrides: list[str], message: str) -> None:
    check_refused(overrides, message)
