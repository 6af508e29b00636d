"""Fully connected networks, named after the widths of their hidden layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from kdschemes.config.load import load_config
from kdschemes.errors import UserError
from kdschemes.models import StagedNetwork, count_macs, count_parameters, create_model, load_model, save_weights
from kdschemes.models.exits import ExitNetwork
from kdschemes.models.probe import stages

HINTON = {"dropout": 0.5, "input_dropout": 0.2}


def build(name: str = "mlp_12_7", dropout: dict[str, float] | None = None) -> StagedNetwork:
    torch.manual_seed(0)
    return create_model(name, num_classes=10, channels=1, image_size=8, dropout=dropout)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("mlp_1200_1200", 2_395_210), ("mlp_800_800", 1_276_810), ("mlp_30_30", 24_790), ("mlp_300", 238_510)],
)
def test_sizes(name: str, parameters: int) -> None:
    network = create_model(name, num_classes=10, channels=1, image_size=28)
    assert count_parameters(network) == parameters
    biases = sum(p.numel() for n, p in network.named_parameters() if n.endswith("bias"))
    assert count_macs(network, 1, 28) == parameters - biases


def test_it_is_matrices_and_relus() -> None:
    network, images = build().eval(), torch.randn(3, 1, 8, 8)
    first, second, last = (
        dict(network.named_parameters())[f"{part}.weight"] for part in ("hidden1.0", "hidden2.0", "fc")
    )
    biases = [dict(network.named_parameters())[f"{part}.bias"] for part in ("hidden1.0", "hidden2.0", "fc")]
    one = (images.flatten(1) @ first.T + biases[0]).clamp_min(0)
    two = (one @ second.T + biases[1]).clamp_min(0)
    logits, features = network.forward_stages(images)
    assert torch.allclose(features["hidden1"], one, atol=1e-6)
    assert torch.allclose(features["hidden2"], two, atol=1e-6)
    assert torch.allclose(logits, two @ last.T + biases[2], atol=1e-6)
    assert [(stage.name, stage.shape) for stage in stages(network, 1, 8)] == [("hidden1", (12,)), ("hidden2", (7,))]


def test_dropout_acts_in_training_only_on_pixels_and_units() -> None:
    network, plain = build("mlp_4000_4000", HINTON), build("mlp_4000_4000")
    images = torch.ones(1, 1, 8, 8)
    assert torch.equal(network.eval()(images), plain.eval()(images))
    assert network.state_dict().keys() == plain.state_dict().keys()
    pixels = network.train().get_submodule("pixels")(torch.ones(500, 1, 8, 8))
    assert pixels.unique().tolist() == pytest.approx([0.0, 1.25], rel=1e-5)
    assert float((pixels == 0).float().mean()) == pytest.approx(0.2, abs=0.02)
    for number in (1, 2):
        units = network.get_submodule(f"dropout{number}")(torch.ones(1, 4000))
        assert float((units == 0).float().mean()) == pytest.approx(0.5, abs=0.05)
    assert not torch.equal(network(images), network(images))


def test_an_exit_and_a_saved_file(tmp_path: Path) -> None:
    network = build(dropout=HINTON)
    exits = ExitNetwork(network, ["hidden1"], "linear", num_classes=10, stages=stages(network, 1, 8))
    functional.cross_entropy(exits(torch.randn(4, 1, 8, 8)), torch.arange(4)).backward()
    save_weights(network, tmp_path)
    again, images = load_model(tmp_path), torch.randn(4, 1, 8, 8)
    assert torch.equal(again(images), network.eval()(images))


@pytest.mark.parametrize("name", ["mlp", "mlp_", "mlp_0", "mlp_12_", "mlp_100000", "mlp_a", "mlp" + "_8" * 17])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(UserError, match=r"model .*mlp_WIDTH_WIDTH"):
        build(name)
    with pytest.raises(UserError, match="mlp_WIDTH_WIDTH"):
        load_config([f"model={name}"], recipes=Path())


def test_dropout_of_a_network_that_has_none_is_rejected() -> None:
    with pytest.raises(UserError, match=r"model.dropout is for mlp_WIDTH_WIDTH, not for convnet"):
        load_config(["model=convnet", "model.dropout=0.5"], recipes=Path())
