"""What a run leaves: the primary head as a plain network that loads without the schemes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kdschemes.core.distillation import Distillation
from kdschemes.distributed.batch_norm import synchronize_batch_norm
from kdschemes.evaluation.export import export_network
from kdschemes.models import create_model, load_model, save_weights
from tests import REPOSITORY
from tests.schemes.cases import (
    DEFAULTS,
    OFFLINE,
    START,
    batch_for,
    build,
    network_of,
    random_batch,
    trained,
)
from tests.schemes.table import VARIANTS

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


@pytest.mark.slow
def test_exported_networks_load_without_the_schemes_and_give_the_same_bits(tmp_path: Path) -> None:
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
