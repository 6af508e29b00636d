"""A network's outputs in the order of the data's classes: mapped by name, refused where the classes differ."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from kdschemes.errors import UserError
from kdschemes.models import StagedNetwork, create_model, load_weights, save_weights
from kdschemes.models.class_order import order_outputs

FRUIT = ["apple", "baby", "fish"]


def build(name: str = "convnet", seed: int = 0) -> StagedNetwork:
    torch.manual_seed(seed)
    return create_model(name, num_classes=3, channels=3, image_size=32).eval()


def loaded(folder: Path, classes: list[str], name: str = "convnet") -> tuple[StagedNetwork, bool]:
    network = build(name, seed=1)
    load_weights(network, folder, num_classes=3)
    return network, order_outputs(network, folder, classes)


@pytest.mark.parametrize("name", ["convnet", "timm/test_vit"])
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_outputs_are_mapped_by_name(tmp_path: Path, name: str, order: list[int]) -> None:
    network, images = build(name), torch.randn(4, 3, 32, 32)
    save_weights(network, tmp_path, metadata={"classes": FRUIT})
    mapped, changed = loaded(tmp_path, [FRUIT[k] for k in order], name)
    assert changed is (order != [0, 1, 2])
    torch.testing.assert_close(mapped(images), network(images)[:, order])


def test_names_in_timms_key_are_read(tmp_path: Path) -> None:
    save_weights(build(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("sha256", None)
    (tmp_path / "config.json").write_text(json.dumps(config | {"label_names": FRUIT}))
    assert loaded(tmp_path, ["fish", "baby", "apple"])[1]


@pytest.mark.parametrize("where", ["folder", "file"])
def test_other_classes_are_refused_and_the_advice_helps(tmp_path: Path, where: str) -> None:
    save_weights(build(), tmp_path / "run", metadata={"classes": FRUIT})
    weights = tmp_path / "run" if where == "folder" else tmp_path / "run" / "model.safetensors"
    with pytest.raises(
        UserError, match=r"'apple' only in .*config\.json, 'zebra' only in the data; give weights"
    ) as error:
        loaded(weights, ["baby", "fish", "zebra"])
    assert "\n" not in str(error.value)
    shutil.copy(tmp_path / "run" / "model.safetensors", tmp_path / "alone.safetensors")
    assert not loaded(tmp_path / "alone.safetensors", ["baby", "fish", "zebra"])[1]


@pytest.mark.parametrize("metadata", [None, {}, {"classes": []}])
def test_unknown_names_change_nothing(tmp_path: Path, metadata: dict[str, list[str]] | None) -> None:
    save_weights(build(), tmp_path, metadata=metadata)
    assert not loaded(tmp_path, ["baby", "fish", "zebra"])[1]


@pytest.mark.parametrize("text", ["{", "[]", '{"metadata": 3}', '{"metadata": {"classes": ["a"]}, "sha256": "0"}'])
def test_a_damaged_description_is_named(tmp_path: Path, text: str) -> None:
    save_weights(build(), tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json is damaged \(.*\): restore or remove it"):
        loaded(tmp_path, FRUIT)
