"""Costs: parameters and MACs of heads, exits, shared trunks and teachers."""

from __future__ import annotations

import pytest
import torch

from kdschemes.config.data import Digits
from kdschemes.core.nodes import NetworkWithExits
from kdschemes.data import DataModule, open_data
from kdschemes.evaluation.cost import head_costs
from kdschemes.models import count_exit_macs, count_macs, count_parameters, create_model
from tests.schemes.cases import (
    OFFLINE,
    ONLINE,
    SELF,
    base,
    build,
)
from tests.schemes.table import VARIANTS


@pytest.fixture(scope="module")
def data() -> DataModule:
    return open_data(Digits(), seed=0, device=torch.device("cpu"))


def test_costs_of_a_student_its_teacher_and_teachers_together(data: DataModule) -> None:
    student = create_model("resnet20", num_classes=10, channels=1, image_size=8)
    convnet = create_model("convnet", num_classes=10, channels=1, image_size=8)
    one, other = (
        {"parameters": count_parameters(network), "macs": count_macs(network, 1, 8)} for network in (student, convnet)
    )
    scheme = build(*OFFLINE, "teacher=convnet", "losses.feature=hint", dtype=torch.float32)
    assert head_costs(scheme, data) == {"student": one, "teacher": other}
    scheme = build(*VARIANTS["offline-kd-two-teachers"], dtype=torch.float32)
    both = {key: one[key] + other[key] for key in one}
    assert head_costs(scheme, data) == {"student": one, "teacher": both}
    scheme = build(*VARIANTS["supervised-ce-ema"], dtype=torch.float32)
    assert head_costs(scheme, data) == {"student": one, "student/ema": one}


def test_costs_of_exits_grow_with_depth_and_hold_what_lies_before_them(data: DataModule) -> None:
    scheme = build(*SELF, dtype=torch.float32)
    costs = head_costs(scheme, data)
    node = scheme.nodes["student"]
    assert isinstance(node, NetworkWithExits)
    whole, macs = node.network, count_exit_macs(node.network, 1, 8)
    before = {
        "student/exit1": ["network.conv1", "network.bn1", "network.layer1", "exits.exit1"],
        "student/exit2": ["network.conv1", "network.bn1", "network.layer1", "network.layer2", "exits.exit2"],
    }
    for head, parts in before.items():
        assert costs[head]["parameters"] == sum(count_parameters(whole.get_submodule(part)) for part in parts)
        assert costs[head]["macs"] == macs[head.rpartition("/")[2]]
    assert costs["student"]["parameters"] == count_parameters(whole.network)
    assert costs["ensemble"]["parameters"] == count_parameters(whole)
    linear = head_costs(build(*VARIANTS["self-byot-linear"], dtype=torch.float32), data)
    for key in ("parameters", "macs"):
        values = [linear[head][key] for head in ("student/exit1", "student/exit2", "student", "ensemble")]
        assert values == sorted(set(values)), key
        assert costs["student/exit1"][key] < costs["student"][key]
    exits = 10 * (16 + 32) + 20
    assert linear["ensemble"]["parameters"] == linear["student"]["parameters"] + exits
    assert linear["ensemble"]["macs"] == linear["student"]["macs"] + 10 * (16 + 32)


def test_a_shared_trunk_counts_once(data: DataModule) -> None:
    apart = head_costs(build(*ONLINE, dtype=torch.float32), data)
    stem = build(*ONLINE, "scheme.topology=shared_trunk", dtype=torch.float32)
    shared = head_costs(stem, data)
    assert apart["peer0"] == apart["peer1"] == shared["peer0"] == shared["peer1"]
    assert apart["ensemble"] == {key: 2 * value for key, value in apart["peer0"].items()}
    branch = count_parameters(stem.nodes["peers"].branches[0])
    assert shared["ensemble"]["parameters"] == shared["peer0"]["parameters"] + branch
    assert shared["peer0"]["macs"] < shared["ensemble"]["macs"] < 2 * shared["peer0"]["macs"]


def test_costs_change_nothing(data: DataModule) -> None:
    scheme = build(*base("self", "byot"), dtype=torch.float32).train()
    state = {key: value.clone() for key, value in scheme.state_dict().items()}
    head_costs(scheme, data)
    assert all(module.training for module in scheme.modules())
    assert all(torch.equal(value, state[key]) for key, value in scheme.state_dict().items())
    assert all(p.grad is None for p in scheme.parameters())
