"""Weights: published ones score as published, files round-trip, broken ones are refused in one line."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdschemes.errors import UserError
from kdschemes.models import create_model, load_model, load_weights, save_weights
from kdschemes.models.base import StagedNetwork
from tests import REPOSITORY


def build(name: str = "resnet20", classes: int = 10, channels: int = 3, size: int = 32, seed: int = 0) -> StagedNetwork:
    torch.manual_seed(seed)
    return create_model(name, num_classes=classes, channels=channels, image_size=size)


def same(a: StagedNetwork, b: StagedNetwork) -> bool:
    ours, theirs = a.plain_state(), b.plain_state()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("name", ["convnet", "resnet20", "timm/test_vit", "timm/test_convnext"])
def test_folder_round_trip(name: str, tmp_path: Path) -> None:
    network = build(name, channels=1, size=16 if name in ("convnet", "resnet20") else 32).to(
        memory_format=torch.channels_last
    )
    save_weights(network, tmp_path / "run", metadata={"epoch": 3})
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.json", "model.safetensors"]
    generator = torch.get_rng_state()
    loaded = load_model(tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), generator)
    assert loaded.spec == network.spec
    assert not loaded.training
    assert same(loaded, network)
    other = build(name, channels=1, size=network.spec.image_size, seed=1)
    assert not same(other, network)
    load_weights(other, tmp_path / "run", num_classes=10)
    assert same(other, network)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["metadata"]["epoch"] == 3
    assert (config["name"], config["num_classes"], config["channels"]) == (name, 10, 1)


def test_another_state_is_saved_under_the_networks_description(tmp_path: Path) -> None:
    network, average = build(), build(seed=1)
    save_weights(network, tmp_path, state=average.plain_state())
    assert same(load_model(tmp_path), average)


@pytest.mark.parametrize(
    ("name", "channels", "size"),
    [
        ("timm/vit_tiny_patch16_224", 3, 32),
        ("timm/test_convnext", 1, 32),
        ("timm/mobilenetv3_small_050", 3, 64),
        ("timm/deit_tiny_distilled_patch16_224", 1, 48),
    ],
)
def test_timm_loads_the_folder_bit_for_bit(name: str, channels: int, size: int, tmp_path: Path) -> None:
    import timm

    network = build(name, classes=7, channels=channels, size=size).eval()
    network.spec = replace(network.spec, mean=(0.5,) * channels, std=(0.25,) * channels, crop_pct=0.9)
    save_weights(network, tmp_path, metadata={"classes": list("abcdefg")})
    plain = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    state = plain.state_dict()
    assert state.keys() == network.plain_state().keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in network.plain_state().items())
    images = torch.randn(2, channels, size, size)
    assert torch.equal(plain(images), network(images))
    assert list(plain.pretrained_cfg["mean"]) == [0.5] * channels
    assert list(plain.pretrained_cfg["input_size"]) == [channels, size, size]
    assert plain.pretrained_cfg["label_names"] == list("abcdefg")
    assert load_model(tmp_path).spec == replace(network.spec, label_names=tuple("abcdefg"))


def test_resnet18_cifar_file_loads_in_plain_timm(tmp_path: Path) -> None:
    import timm

    network = build("resnet18_cifar", classes=100).eval()
    save_weights(network, tmp_path)
    plain = timm.create_model("resnet18", num_classes=100)
    plain.conv1, plain.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    plain.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(plain.eval()(images), network(images))


@pytest.mark.slow
def test_load_model_imports_no_training_code(tmp_path: Path) -> None:
    save_weights(build(), tmp_path)
    code = (
        "import sys; from kdschemes.models import load_model; load_model(sys.argv[1]); "
        "print(*sorted(name for name in sys.modules if name.startswith('kdschemes.')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True, cwd=REPOSITORY
    )
    rooms = {name.split(".")[1] for name in done.stdout.split()}
    assert rooms <= {"models", "storage", "config", "checksums", "errors", "printable"}


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "model", "module.", "_orig_mod.", "module._orig_mod."])
def test_torch_files(wrap: str, tmp_path: Path) -> None:
    network = build()
    state: dict[str, Any] = dict(network.plain_state())
    if wrap in ("state_dict", "model"):
        state = {wrap: state, "epoch": 3}
    elif wrap != "plain":
        state = {wrap + name: tensor for name, tensor in state.items()}
    torch.save(state, tmp_path / "weights.pt")
    other = build(seed=1)
    load_weights(other, str(tmp_path / "weights.pt"), num_classes=10)
    assert same(other, network)


def refusal(file: Path, classes: int = 10, name: str = "resnet20") -> str:
    network = build(name, classes=classes)
    before = {key: tensor.clone() for key, tensor in network.plain_state().items()}
    with pytest.raises(UserError) as caught:
        load_weights(network, file, num_classes=classes)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.plain_state().items())
    message = str(caught.value)
    assert "\n" not in message
    assert str(file) in message
    return message


def test_tensors_that_do_not_fit(tmp_path: Path) -> None:
    state = dict(build().plain_state())
    state["extra"] = torch.zeros(2)
    state["bn1.weight"] = torch.zeros(8)
    del state["layer1.0.bn1.bias"]
    save_file(state, tmp_path / "a.safetensors")
    message = refusal(tmp_path / "a.safetensors")
    assert message.endswith(
        "does not fit resnet20: missing layer1.0.bn1.bias, unexpected extra, bn1.weight is [8] instead of [16]"
    )
    save_weights(build("resnet56"), tmp_path / "run")
    message = refusal(tmp_path / "run")
    assert message.count("unexpected layer") == 10
    assert message.endswith(", and 206 more")


@pytest.mark.parametrize("name", ["resnet20", "timm/test_convnext"])
def test_other_number_of_classes(name: str, tmp_path: Path) -> None:
    save_weights(build(name, classes=100), tmp_path)
    assert "has 100 classes, but the data has 10;" in refusal(tmp_path, name=name)


class Code:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("executed",)


def test_files_that_are_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no weights at" in refusal(tmp_path / "nowhere.pt")
    (tmp_path / "empty").mkdir()
    assert "folder with model.safetensors" in refusal(tmp_path / "empty")
    (tmp_path / "empty.pt").touch()
    (tmp_path / "text.safetensors").write_text("not tensors at all")
    (tmp_path / "text.pt").write_text("not tensors at all")
    torch.save(build().plain_state(), tmp_path / "whole.pt")
    (tmp_path / "half.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:100_000])
    save_weights(build(), tmp_path / "run")
    (tmp_path / "half.safetensors").write_bytes((tmp_path / "run/model.safetensors").read_bytes()[:100_000])
    (tmp_path / "code.pt").write_bytes(pickle.dumps({"fc.weight": Code()}))
    torch.save({"fc.weight": Code()}, tmp_path / "code_in_torch.pt")
    broken = ("empty.pt", "text.safetensors", "text.pt", "half.pt", "half.safetensors")
    for file in (*broken, "code.pt", "code_in_torch.pt"):
        assert "cannot be read as tensors only" in refusal(tmp_path / file), file
    assert not (tmp_path / "executed").exists()
    for number, content in enumerate(([torch.zeros(1)], {"epoch": 3}, {"state_dict": {}}, build())):
        torch.save(content, tmp_path / f"{number}.pt")
        assert "is not a dictionary of tensors" in refusal(tmp_path / f"{number}.pt")


def test_a_torch_file_of_before_1_6_is_read(tmp_path: Path) -> None:
    torch.save(build().plain_state(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    other = build(seed=1)
    load_weights(other, tmp_path / "old.pt", num_classes=10)
    assert same(other, build())


def test_a_compressed_torch_file_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    torch.save(build().plain_state(), tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as whole,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    torch.load(tmp_path / "packed.pt", weights_only=True)  # unpacks whatever is in it
    assert "contains compressed data" in refusal(tmp_path / "packed.pt")


def test_folders_that_are_no_network(tmp_path: Path) -> None:
    for number, text in enumerate((None, "{", "[]", '{"name": "convnet"}')):
        folder = tmp_path / str(number)
        folder.mkdir()
        if text is not None:
            (folder / "config.json").write_text(text)
        with pytest.raises(UserError, match=r"no network at .*config.json cannot be read"):
            load_model(folder)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = build()
    save_weights(network, tmp_path)

    def full(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="cannot be written: no space left"):
        save_weights(build(seed=1), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert same(load_model(tmp_path), network)


def test_saving_shared_storage(tmp_path: Path) -> None:
    network = build()
    base = torch.zeros(2, 16)
    state: dict[str, Tensor] = network.plain_state() | {"bn1.weight": base[0], "bn1.bias": base[1]}
    save_weights(network, tmp_path, state=state)
    assert torch.equal(load_file(tmp_path / "model.safetensors")["bn1.bias"], base[1])


def test_saving_where_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot create folder .*file"):
        save_weights(build(), tmp_path / "file")


@pytest.mark.slow
def test_hub_name_is_read_from_the_local_copy(tmp_path: Path) -> None:
    """The hub's own client finds a repository in its cache and does not need the network."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--net"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    network = create_model("resnet20", num_classes=7, channels=3, image_size=32)
    save_weights(network, repository / "snapshots" / commit)
    script = f"""
import sys, torch
from kdschemes.models import create_model, load_weights
network = create_model("resnet20", num_classes=7, channels=3, image_size=32)
load_weights(network, "hf_hub:someone/net", num_classes=7)
torch.save(network.state_dict(), {str(tmp_path / "read.pt")!r})
from kdschemes.errors import UserError
try:
    load_weights(network, "hf_hub:someone/other", num_classes=7)
except UserError as error:
    sys.exit(0 if "hf_hub:someone/other cannot be downloaded" in str(error) and "\\n" not in str(error) else 1)
sys.exit(3)
"""
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, cwd=REPOSITORY)
    read = torch.load(tmp_path / "read.pt", weights_only=True)
    assert all(torch.equal(tensor, read[name]) for name, tensor in network.state_dict().items())
