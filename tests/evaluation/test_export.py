"""What a run leaves: the reported head as a plain network that loads without the schemes, and what each head costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kdschemes.config.data import Digits
from kdschemes.core.distillation import Distillation
from kdschemes.core.nodes import NetworkWithExits
from kdschemes.data import DataModule, open_data
from kdschemes.distributed.batch_norm import synchronize_batch_norm
from kdschemes.evaluation.cost import head_costs
from kdschemes.evaluation.export import export_network
from kdschemes.models import count_exit_macs, count_macs, count_parameters, create_model, load_model, save_weights
from tests import REPOSITORY
from tests.schemes.cases import (
    DEFAULTS,
    OFFLINE,
    ONLINE,
    SELF,
    START,
    VARIANTS,
    base,
    batch_for,
    build,
    network_of,
    random_batch,
    trained,
)

EXPORTED = [*DEFAULTS, "online-dml-shared-trunk", "supervised-ce-ema", "self-byot-linear"]
LOADER = """
import sys, torch
from kdschemes.models import load_model
images, folders = torch.load(sys.argv[1]), sys.argv[2:]
torch.set_num_threads(1)
with torch.no_grad():
    logits = {folder: load_model(folder)(images) for folder in folders}
banned = ("kdschemes.schemes", "kdschemes.training", "kdschemes.core.nodes")
loaded = [name for name in sys.modules if name.startswith(banned)]
assert not loaded, loaded
torch.save(logits, sys.argv[1])
"""


@pytest.fixture(scope="module")
def data() -> DataModule:
    return open_data(Digits(), seed=0, device=torch.device("cpu"))


def stepped(name: str) -> Distillation:
    """A scheme two steps after its start, so that batch norm's statistics and averages have moved."""
    scheme = build(*VARIANTS[name], dtype=torch.float32).train()
    optimizer = torch.optim.SGD(trained(scheme), lr=0.01)
    for seed in range(2):
        optimizer.zero_grad()
        scheme(batch_for(scheme, seed=seed, dtype=torch.float32), START).total.backward()
        optimizer.step()
        scheme.after_step()
    return scheme


def read_elsewhere(folders: list[Path], images: torch.Tensor, file: Path) -> dict[str, torch.Tensor]:
    """Return the logits of exported networks, computed by a process that knows no scheme."""
    torch.save(images, file)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", LOADER, str(file), *map(str, folders)], check=True, env=environment)
    logits: dict[str, torch.Tensor] = torch.load(file)
    return logits


def test_exported_networks_load_without_the_schemes_and_answer_to_the_last_bit(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    batch, expected, folders = random_batch(seed=5, dtype=torch.float32), {}, []
    for name in EXPORTED:
        scheme = stepped(name)
        folder = tmp_path / name
        if name.endswith("-ema"):
            save_weights(network_of(scheme, scheme.heads[-1]), folder)
            head = scheme.heads[-1]
        else:
            export_network(scheme, folder, {"dataset": "digits", "mean": [0.3], "std": [0.4]})
            head = scheme.heads[0]
            written = json.loads((folder / "config.json").read_text())
            assert written["name"] == "resnet20"
            assert written["metadata"] == {"dataset": "digits", "mean": [0.3], "std": [0.4], "head": head}
        assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json"}
        with torch.no_grad():
            expected[str(folder)] = scheme.eval().predict(batch, [head])[head].logits
        folders.append(folder)
    answers = read_elsewhere(folders, batch.images, tmp_path / "images.pt")
    torch.set_num_threads(threads)
    assert answers.keys() == expected.keys()
    for folder, logits in expected.items():
        assert torch.equal(answers[folder], logits), folder


@pytest.mark.parametrize("name", ["self-byot", "online-dml-shared-trunk"])
def test_an_exported_network_has_the_plain_networks_tensors_and_no_other(name: str, tmp_path: Path) -> None:
    scheme = stepped(name)
    export_network(synchronize_batch_norm(scheme, torch.device("cpu")), tmp_path, {})
    plain = create_model("resnet20", num_classes=10, channels=1, image_size=8)
    loaded = load_model(tmp_path)
    assert loaded.state_dict().keys() == plain.state_dict().keys()
    head = scheme.heads[0]
    batch = random_batch(dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(loaded(batch.images), scheme.eval().predict(batch, [head])[head].logits)


def test_an_export_is_a_teacher_for_another_run(tmp_path: Path) -> None:
    scheme = stepped("self-byot")
    export_network(scheme, tmp_path, {})
    teacher = network_of(build(*OFFLINE, f"teacher.checkpoint={tmp_path}", dtype=torch.float32), "teacher")
    own = network_of(scheme, "student").eval()
    batch = random_batch(dtype=torch.float32)
    assert torch.equal(teacher(batch.images), own(batch.images))


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
