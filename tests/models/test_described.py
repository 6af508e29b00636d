"""What the config.json next to weights says about their images."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdschemes.errors import UserError
from kdschemes.models import InputSpec, create_model, described_input, load_model, save_weights
from tests import REPOSITORY

HALF = InputSpec(48, (0.5,) * 3, (0.25,) * 3)


def timm_config(**changes: object) -> dict[str, Any]:
    """A config.json as timm writes it."""
    cfg = {"mean": [0.5] * 3, "std": [0.25] * 3, "input_size": [3, 48, 48], "crop_mode": "center"} | changes
    return {"architecture": "test_vit", "num_classes": 10, "pretrained_cfg": cfg}


@pytest.mark.parametrize("name", ["resnet20", "timm/test_resnet"])
def test_an_exported_network_says_what_it_was_trained_on(name: str, tmp_path: Path) -> None:
    network = create_model(name, num_classes=10, channels=3, image_size=48)
    save_weights(network, tmp_path / "unknown")
    assert described_input(tmp_path / "unknown", 3) == InputSpec(48)
    network.spec = replace(network.spec, mean=HALF.mean, std=HALF.std)
    save_weights(network, tmp_path / "known")
    assert (
        described_input(tmp_path / "known", 3) == described_input(tmp_path / "known" / "model.safetensors", 3) == HALF
    )
    assert load_model(tmp_path / "known").spec == network.spec


@pytest.mark.parametrize("file", ["", "model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("legacy", [False, True])
def test_what_timm_wrote_is_read(file: str, legacy: bool, tmp_path: Path) -> None:
    (tmp_path / file).touch()
    config = timm_config()
    (tmp_path / "config.json").write_text(json.dumps(config["pretrained_cfg"] if legacy else config))
    assert described_input(tmp_path / file, 3) == HALF


def test_other_files_in_a_folder_are_not_described_by_its_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(timm_config()))
    (tmp_path / "other.pt").touch()
    assert described_input(tmp_path / "other.pt", 3) == InputSpec()


def test_an_older_export_of_a_timm_model_does_not_know_its_mean_and_std(tmp_path: Path) -> None:
    config = timm_config() | {"metadata": {"run": "old"}}
    del config["pretrained_cfg"]["crop_mode"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert described_input(tmp_path, 3) == InputSpec(48)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"pretrained_cfg": 3}', json.dumps(timm_config(std=[0] * 3)), json.dumps(timm_config(mean=7))]
)
def test_a_damaged_description_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config.json does not say what images the network needs") as caught:
        described_input(tmp_path, 3)
    assert "\n" not in str(caught.value)


def test_a_changed_description_of_an_exported_network_is_refused(tmp_path: Path) -> None:
    save_weights(create_model("resnet20", num_classes=10, channels=3, image_size=48), tmp_path)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace("48", "49"))
    with pytest.raises(UserError, match="it does not match its checksum"):
        described_input(tmp_path, 3)


def test_weights_that_are_gone_are_missed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no weights at"):
        described_input(tmp_path / "gone", 3)


@pytest.mark.slow
def test_a_repository_of_the_hub_is_described_by_its_own_config(tmp_path: Path) -> None:
    """Read from the local copies of the hub's client, without the network."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    for name, config in (("net", timm_config()), ("bare", None)):
        repository = tmp_path / "hub" / f"models--someone--{name}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(commit)
        (repository / "snapshots" / commit).mkdir(parents=True)
        (repository / "snapshots" / commit / "model.safetensors").touch()
        if config is not None:
            (repository / "snapshots" / commit / "config.json").write_text(json.dumps(config))
    script = """
from kdschemes.errors import UserError
from kdschemes.models import described_input
print(described_input("hf_hub:someone/net", 3))
try:
    print(described_input("hf_hub:someone/bare", 3))
except UserError as error:
    print(error)
"""
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=REPOSITORY)
    known, unknown = done.stdout.splitlines()
    assert known == repr(HALF)
    assert unknown.startswith("config.json of hf_hub:someone/bare cannot be downloaded")
