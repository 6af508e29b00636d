"""What the README of an export says of networks and data of the user's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kdschemes.config.data import OwnData
from kdschemes.config.load import load_config
from kdschemes.deployment.card import card
from kdschemes.deployment.formats import Form
from kdschemes.deployment.opened import Trained
from kdschemes.models import create_model


@pytest.mark.parametrize(
    ("name", "code", "loaded", "title"),
    [
        ("/home/me/nets.py:Net", {"/home/me/nets.py:Net": "1a2b"}, "allow=['/home/me/nets.py:Net']", "nets.Net"),
        ("mine", {"plugin.py": "1a2b"}, "allow=['plugin.py']", "mine"),
        ("given/Net-12345678", {}, "network=Net", "Net-12345678"),
        ("resnet20", {}, "", "resnet20"),
    ],
)
def test_networks_of_the_users_own_are_loaded_with_their_code(
    name: str, code: dict[str, str], loaded: str, title: str, tmp_path: Path
) -> None:
    network = create_model("resnet20", num_classes=10, channels=1, image_size=8)
    network.spec = replace(network.spec, name=name, code=code)
    config = load_config(["scheme=supervised"], recipes=tmp_path)
    config = replace(config, data=OwnData(name="/home/me/data.py:make"))
    trained = Trained(tmp_path / "run", "student", "last", "after epoch 1", network, None, ("a", "b"), config, None, 8)
    text = card(trained, Form("safetensors"), None, "mit", None)
    assert text.startswith(f"# {title}, student of run\n")
    assert f'network = load_model("."{f", {loaded}" if loaded else ""})\n' in text
    assert ("The code of the network is not in this folder" in text) == bool(loaded)
    assert "on data.make, seed 0" in text
    assert trained.metadata["data"] == "data.make"
