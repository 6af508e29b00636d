"""Exits: their shapes, costs, gradients and the ways to ask for them wrongly."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import nn

from kdschemes.errors import UserError
from kdschemes.models import ExitNetwork, Stage, count_exit_macs, count_macs, count_parameters, create_model, stages
from kdschemes.models.exits import BottleneckExit, LinearExit, pool

Head = Literal["linear", "bottleneck"]


def build(
    name: str, head: Head, exits: Literal["all"] | list[str] = "all", classes: int = 10, size: int = 32
) -> ExitNetwork:
    torch.manual_seed(0)
    network = create_model(name, num_classes=classes, channels=3, image_size=size)
    return ExitNetwork(network, exits, head, num_classes=classes, stages=stages(network, 3, size))


def test_linear_exits_of_convnet() -> None:
    network = build("convnet", "linear", classes=100)
    assert count_parameters(network) - count_parameters(network.network) == 22_700
    total = count_macs(network, 3, 32)
    shares = [100 * macs / total for macs in count_exit_macs(network, 3, 32).values()]
    assert shares == pytest.approx([19.6, 46.4, 73.2], abs=0.1)


@pytest.mark.parametrize("name", ["convnet", "resnet20", "timm/test_vit", "timm/test_efficientnet"])
@pytest.mark.parametrize("head", ["linear", "bottleneck"])
def test_shapes_and_logits(name: str, head: Head) -> None:
    network = build(name, head, size=64).eval()
    images = torch.randn(3, 3, 64, 64)
    logits, features, exits = network.forward_exits(images)
    assert torch.equal(logits, network.network(images))
    assert torch.equal(logits, network(images))
    names = list(features)
    assert network.exit_stages == {f"exit{k}": stage for k, stage in enumerate(names[:-1], start=1)}
    assert list(exits) == list(network.exit_stages)
    for exit_name, (exit_logits, feature) in exits.items():
        assert exit_logits.shape == (3, 10)
        assert torch.equal(exit_logits, network.forward_until_exit(images, exit_name))
        if head == "linear":
            assert feature is features[network.exit_stages[exit_name]]
        else:
            assert feature.shape == features[names[-1]].shape


@pytest.mark.parametrize("size", [8, 28, 31, 33])
def test_bottlenecks_meet_the_last_stage_at_any_image_size(size: int) -> None:
    network = build("convnet", "bottleneck", size=size)
    _, features, exits = network.forward_exits(torch.randn(2, 3, size, size))
    assert [feature.shape for _, feature in exits.values()] == [features["stage4"].shape] * 3


def test_bottleneck_layers() -> None:
    exit_ = BottleneckExit((32, 32, 32), (256, 4, 4), 10)
    convolutions = [layer for layer in exit_.body if isinstance(layer, nn.Conv2d)]
    depthwise, pointwise = convolutions[::2], convolutions[1::2]
    assert [(c.groups, c.kernel_size, c.stride) for c in depthwise] == [
        (32, (3, 3), (2, 2)),
        (64, (3, 3), (2, 2)),
        (128, (3, 3), (2, 2)),
    ]
    assert [(c.in_channels, c.out_channels, c.kernel_size) for c in pointwise] == [
        (32, 64, (1, 1)),
        (64, 128, (1, 1)),
        (128, 256, (1, 1)),
    ]


def test_bottleneck_of_unequal_sides_and_fewer_channels() -> None:
    exit_ = BottleneckExit((48, 14, 7), (24, 3, 7), 5)
    logits, feature = exit_(torch.randn(2, 48, 14, 7))
    assert logits.shape == (2, 5)
    assert feature.shape == (2, 24, 3, 7)


@pytest.mark.parametrize("head", ["linear", "bottleneck"])
def test_gradient_reaches_every_parameter(head: Head) -> None:
    network = build("convnet", head).eval()
    logits, _, exits = network.forward_exits(torch.randn(4, 3, 32, 32))
    total = torch.stack(
        [nn.functional.cross_entropy(z, torch.arange(4)) for z in (logits, *(e[0] for e in exits.values()))]
    )
    total.sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_chosen_exits_are_shallow_to_deep() -> None:
    network = build("convnet", "linear", ["stage3", "stage1"])
    assert network.exit_stages == {"exit1": "stage1", "exit2": "stage3"}


def test_tokens_and_vectors() -> None:
    tokens, vectors = torch.randn(2, 5, 8), torch.randn(2, 8)
    torch.testing.assert_close(pool(tokens), sum(tokens[:, k] for k in range(5)) / 5)
    assert pool(vectors) is vectors
    assert LinearExit((5, 8), 3)(tokens)[0].shape == (2, 3)
    assert LinearExit((8,), 3)(vectors)[0].shape == (2, 3)


def test_mistakes() -> None:
    with pytest.raises(UserError, match=r"unknown stage of convnet 'stage9'; .*choose from stage1, stage2, stage3"):
        build("convnet", "linear", ["stage9"])
    with pytest.raises(UserError, match="no exit can be on stage4, the last stage"):
        build("convnet", "linear", ["stage1", "stage4"])
    for exits in ([], ["stage1", "stage1"]):
        with pytest.raises(UserError, match="stages of convnet"):
            build("convnet", "linear", exits)


def test_bottleneck_needs_shrinking_maps() -> None:
    network = create_model("resnet20", num_classes=10, channels=3, image_size=32)
    vectors = [Stage("layer1", 0.5, (16,)), Stage("layer2", 1.0, (32,))]
    with pytest.raises(UserError, match="needs maps; stage layer1 has none"):
        ExitNetwork(network, "all", "bottleneck", num_classes=10, stages=vectors)
    growing = [Stage("layer1", 0.5, (16, 4, 4)), Stage("layer2", 1.0, (32, 8, 8))]
    with pytest.raises(UserError, match="cannot enlarge the maps of stage layer1"):
        ExitNetwork(network, "all", "bottleneck", num_classes=10, stages=growing)
