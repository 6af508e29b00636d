"""LeNet-5 and the plain networks of Mirzadeh et al.: sizes by hand, layers, and what they have no classifier for."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from kdschemes.errors import UserError
from kdschemes.models import ExitNetwork, StagedNetwork, count_macs, count_parameters, create_model, stages

PLAIN = {
    "plain2": "32 M 32 M",
    "plain4": "32 32 M 64 64 M",
    "plain6": "32 32 M 64 64 M 128 128",
    "plain8": "32 32 M 64 64 M 128 128 M 256 256 M F64",
    "plain10": "32 32 M 64 64 M 128 128 M 256 256 256 256 M F512",
}
"""Channels of the convolutions, max pooling, hidden units; as the authors' code has them for CIFAR-100."""


def build(name: str, classes: int = 100, channels: int = 3, size: int = 32) -> StagedNetwork:
    torch.manual_seed(0)
    return create_model(name, num_classes=classes, channels=channels, image_size=size)


@pytest.mark.parametrize(
    ("name", "parameters", "macs"), [("lenet5", 61_706, 416_520), ("lenet5_half", 35_820, 153_720)]
)
def test_lenet5(name: str, parameters: int, macs: int) -> None:
    network = build(name, 10, 1, 28)
    assert (count_parameters(network), count_macs(network, 1, 28)) == (parameters, macs)
    filters = (6, 16) if name == "lenet5" else (3, 8)
    assert [stage.shape for stage in stages(network, 1, 28)] == [(filters[0], 28, 28), (filters[1], 10, 10)]
    first, second = (size * 25 * before + size for before, size in ((1, filters[0]), filters))
    assert parameters == first + second + (filters[1] * 25 + 1) * 120 + 121 * 84 + 85 * 10
    assert build(name, 10, 3, 32)(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_lenet5_is_its_formula() -> None:
    network, images = build("lenet5", 10, 1, 28).eval(), torch.randn(2, 1, 28, 28)
    state = network.plain_state()
    layers = [name.removesuffix(".weight") for name in state if name.endswith(".weight")]
    conv1, conv2, *hidden, last = ((state[f"{name}.weight"], state[f"{name}.bias"]) for name in layers)
    one = functional.conv2d(functional.pad(images, (2, 2, 2, 2)), *conv1).clamp_min(0)
    two = functional.conv2d(one.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5)), *conv2).clamp_min(0)
    x = two.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5)).flatten(1)
    for weight, bias in hidden:
        x = (x @ weight.T + bias).clamp_min(0)
    torch.testing.assert_close(network(images), x @ last[0].T + last[1])


@pytest.mark.parametrize("name", PLAIN)
def test_plain_networks_have_the_layers_of_the_authors(name: str) -> None:
    parameters, macs, before, side = 0, 0, 3, 32
    for word in PLAIN[name].split():
        if word == "M":
            side //= 2
        elif word.startswith("F"):
            size = before * side**2
            before, side = int(word[1:]), 1
            parameters, macs = parameters + (size + 1) * before, macs + size * before
        else:
            parameters += (9 * before + 3) * int(word)  # bias, and scale and shift of batch norm
            macs, before = macs + 9 * before * int(word) * side**2, int(word)
    size = before * side**2
    network = build(name)
    assert count_parameters(network) == parameters + 100 * (size + 1)
    assert count_macs(network, 3, 32) == macs + 100 * size
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert f"plain{len(convolutions)}" == name
    assert all(stage.shape[0] in (32, 64, 128, 256) for stage in stages(network, 3, 32))
    assert build(name, 10, 1, 28)(torch.randn(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize("name", ["lenet5_half", "plain6", "plain8"])
def test_exits_and_stages(name: str) -> None:
    network = build(name, 10)
    found = stages(network, 3, 32)
    exits = ExitNetwork(network, "all", "linear", num_classes=10, stages=found).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(exits.forward_exits(images)[0], network(images))
    for stage in found:
        assert torch.equal(network.forward_until(images, stage.name), network.forward_stages(images)[1][stage.name])
    assert network.linear_classifier() is None
    assert list(network.activated) == ([] if name == "lenet5_half" else [stage.name for stage in found])


def test_images_that_are_too_small() -> None:
    with pytest.raises(UserError, match="lenet5 needs 12x12 images or more, not 8x8"):
        build("lenet5", size=8)
    with pytest.raises(UserError, match="plain10 halves its images 4 times: it needs 16x16 or more, not 8x8"):
        build("plain10", size=8)
    assert build("plain2", size=8)(torch.randn(2, 3, 8, 8)).shape == (2, 100)
