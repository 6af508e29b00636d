"""The networks of the public CIFAR-100 tables: sizes, stages, cuts, exits, maps before the ReLU, initial weights."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from kdschemes.errors import UserError
from kdschemes.models import (
    MODELS,
    ExitNetwork,
    SequentialNetwork,
    count_macs,
    count_parameters,
    create_model,
    split,
    stages,
)

RESNET_X4 = {"layer1": (64, 32, 32), "layer2": (128, 16, 16), "layer3": (256, 8, 8)}
WRN_1 = {"layer1": (16, 32, 32), "layer2": (32, 16, 16), "layer3": (64, 8, 8)}
WRN_2 = {"layer1": (32, 32, 32), "layer2": (64, 16, 16), "layer3": (128, 8, 8)}
VGG = {
    "layer1": (64, 32, 32),
    "layer2": (128, 16, 16),
    "layer3": (256, 8, 8),
    "layer4": (512, 4, 4),
    "layer5": (512, 4, 4),
}
STAGES = {
    "resnet8x4": RESNET_X4,
    "resnet32x4": RESNET_X4,
    "wrn_16_1": WRN_1,
    "wrn_16_2": WRN_2,
    "wrn_40_1": WRN_1,
    "wrn_40_2": WRN_2,
    "vgg8": VGG,
    "vgg13": VGG,
    "mobilenet_v2": {
        "layer1": (12, 16, 16),
        "layer2": (16, 8, 8),
        "layer3": (48, 4, 4),
        "layer4": (160, 2, 2),
        "head": (1280, 2, 2),
    },
    "shufflenet_v1": {"layer1": (240, 16, 16), "layer2": (480, 8, 8), "layer3": (960, 4, 4)},
    "shufflenet_v2": {"layer1": (116, 16, 16), "layer2": (232, 8, 8), "layer3": (464, 4, 4), "head": (1024, 4, 4)},
}
"""Shapes of the stages' features for 32x32 images."""

SMALL = ["resnet8x4", "wrn_16_1", "vgg8", "mobilenet_v2", "shufflenet_v1", "shufflenet_v2"]
"""One network of each family, the smallest."""


def build(name: str, classes: int = 10, channels: int = 3, size: int = 32) -> SequentialNetwork:
    torch.manual_seed(0)
    network = create_model(name, num_classes=classes, channels=channels, image_size=size)
    assert isinstance(network, SequentialNetwork)
    return network


@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [
        ("resnet8x4", 1_233_540, 177_071_104),
        ("resnet32x4", 7_433_860, 1_083_040_768),
        ("wrn_16_1", 180_916, 26_663_168),
        ("wrn_16_2", 703_284, 101_118_464),
        ("wrn_40_1", 569_780, 83_286_272),
        ("wrn_40_2", 2_255_156, 327_610_880),
        ("vgg8", 3_965_028, 96_192_512),
        ("vgg13", 9_462_180, 284_936_192),
        ("mobilenet_v2", 812_836, 6_523_648),
        ("shufflenet_v1", 949_258, 38_691_456),
        ("shufflenet_v2", 1_355_528, 44_504_448),
    ],
)
def test_parameters_macs_and_stages(name: str, parameters: int, macs: int) -> None:
    network = build(name, classes=100)
    assert count_parameters(network) == parameters
    assert count_macs(network, 3, 32) == macs
    assert {stage.name: stage.shape for stage in stages(network, 3, 32)} == STAGES[name]
    assert network.stage_names == tuple(STAGES[name])


def test_every_network_of_the_tables_is_here() -> None:
    assert set(STAGES) <= set(MODELS)


def test_parameters_of_a_wide_resnet_by_hand() -> None:
    depth, widen = 40, 2
    widths = (16, 16 * widen, 32 * widen, 64 * widen)
    count = 9 * 3 * 16
    for before, width in pairwise(widths):
        for block in range((depth - 4) // 6):
            entering = before if block == 0 else width
            count += 2 * entering + 2 * width + 9 * entering * width + 9 * width * width
            count += entering * width if entering != width else 0
    count += 2 * widths[-1] + 100 * (widths[-1] + 1)
    assert count == count_parameters(build("wrn_40_2", classes=100))


def test_macs_of_vgg_by_hand() -> None:
    macs, before = 512 * 100, 3
    for width, side in ((64, 32), (128, 16), (256, 8), (512, 4), (512, 4)):
        macs += 9 * side**2 * (before * width + width * width)
        before = width
    assert macs == count_macs(build("vgg13", classes=100), 3, 32)


@pytest.mark.parametrize("name", [*SMALL, "wrn_16_2", "vgg13"])
@pytest.mark.parametrize("training", [False, True])
def test_logits_are_the_classifier_on_the_last_stage(name: str, training: bool) -> None:
    network = build(name).train(training)
    logits, features = network.forward_stages(torch.randn(4, 3, 32, 32))
    assert logits.shape == (4, 10)
    assert {stage: tuple(feature.shape[1:]) for stage, feature in features.items()} == STAGES[name]
    last = features[network.stage_names[-1]]
    assert torch.equal(logits, network.classify(last))
    assert torch.equal(logits, network.linear_classifier()(last.mean((2, 3))))
    assert network.part_names[-1] == network.stage_names[-1]


@pytest.mark.parametrize("name", SMALL)
def test_trunk_and_branch(name: str) -> None:
    network = build(name).eval()
    images = torch.randn(2, 3, 32, 32)
    logits, features = network.forward_stages(images)
    for stage in network.stage_names[1:]:
        trunk, branch = split(network, stage)
        tensor, shallow = trunk.eval()(images)
        again, deep = branch.eval()(tensor)
        assert torch.equal(again, logits)
        assert list(shallow | deep) == list(features)
        assert torch.equal(network.forward_until(images, stage), features[stage])


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("head", ["linear", "bottleneck"])
def test_exits(name: str, head: str) -> None:
    network = build(name)
    found = stages(network, 3, 32)
    with_exits = ExitNetwork(network, "all", head, num_classes=10, stages=found).eval()
    images = torch.randn(2, 3, 32, 32)
    logits, _, exits = with_exits.forward_exits(images)
    assert torch.equal(logits, network(images))
    assert list(with_exits.exit_stages.values()) == [stage.name for stage in found[:-1]]
    for exit_logits, feature in exits.values():
        assert exit_logits.shape == (2, 10)
        assert head == "linear" or feature.shape[1:] == found[-1].shape


def test_which_stages_end_in_a_relu() -> None:
    ends = {name: list(build(name).activated) for name in SMALL}
    assert ends == {
        "resnet8x4": ["layer1", "layer2", "layer3"],
        "wrn_16_1": ["layer3"],
        "vgg8": list(VGG),
        "mobilenet_v2": ["head"],
        "shufflenet_v1": ["layer1", "layer2", "layer3"],
        "shufflenet_v2": ["head"],
    }


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("training", [False, True])
def test_maps_before_the_last_relu(name: str, training: bool) -> None:
    network = build(name).train(training)
    images = torch.randn(4, 3, 32, 32)
    logits, features, before = network.forward_preactivations(images)
    again, same = network.forward_stages(images)
    assert torch.equal(logits, again)
    assert all(torch.equal(features[stage], same[stage]) for stage in features)
    assert list(before) == list(network.activated)
    for stage, norm in network.activated.items():
        assert torch.equal(before[stage].relu(), features[stage])
        assert before[stage].min() < 0
        assert norm.num_features == features[stage].shape[1]
    torch.stack([map_.mean() for map_ in before.values()]).sum().backward()
    shallowest = next(iter(network.activated.values()))
    for parameter in (next(network.parameters()), shallowest.bias):
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0


@pytest.mark.parametrize("name", SMALL)
def test_gradients_before_the_relu_are_those_of_the_plain_forward(name: str) -> None:
    network = build(name).double().eval()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    gradients = []
    for forward in (network.forward_stages, network.forward_preactivations):
        network.zero_grad()
        forward(images)[0].square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) == len(list(network.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("channels", "size"), [(1, 32), (3, 64), (1, 8), (3, 33)])
def test_other_images(name: str, channels: int, size: int) -> None:
    network = build(name, channels=channels, size=size).eval()
    logits = network(torch.randn(2, channels, size, size))
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()


def test_vgg_pools_once_more_for_64_pixels() -> None:
    found = stages(build("vgg8", size=64), 3, 64)
    assert [stage.shape[1:] for stage in found] == [(64, 64), (32, 32), (16, 16), (8, 8), (4, 4)]


@pytest.mark.parametrize("name", ["vgg8", "vgg13", "mobilenet_v2"])
def test_images_that_are_too_small(name: str) -> None:
    with pytest.raises(UserError, match=r"8x8 or more, not 4x4"):
        build(name, size=4)


@pytest.mark.parametrize("name", SMALL)
def test_initial_weights_follow_the_seed(name: str) -> None:
    first, second = build(name).plain_state(), build(name).plain_state()
    assert all(torch.equal(first[key], second[key]) for key in first)
    other = create_model(name, num_classes=10, channels=3, image_size=32).plain_state()
    assert not torch.equal(first["fc.weight"], other["fc.weight"])


@pytest.mark.parametrize("name", ["resnet8x4", "wrn_40_2", "vgg13", "mobilenet_v2"])
def test_he_initialization(name: str) -> None:
    network = build(name)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 3000:
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert float(module.weight.detach().std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
            assert module.bias is None or not module.bias.any()


def test_initial_classifiers() -> None:
    for name in ("vgg8", "mobilenet_v2"):
        fc = build(name, classes=100).fc
        assert float(fc.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
        assert not fc.bias.any()
    assert not build("wrn_16_2").fc.bias.any()
    assert build("shufflenet_v2").fc.bias.any()


def test_channels_are_shuffled() -> None:
    from kdschemes.models.shufflenet import shuffle

    channels = torch.arange(6.0).view(1, 6, 1, 1)
    assert shuffle(channels, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert shuffle(channels, 3).flatten().tolist() == [0, 2, 4, 1, 3, 5]
    assert torch.equal(shuffle(channels, 1), channels)


def test_shufflenet_v2_passes_half_of_the_channels_on() -> None:
    from kdschemes.models.shufflenet import SplitBlock

    x = torch.randn(2, 8, 4, 4)
    out = SplitBlock(8).eval()(x)
    assert torch.equal(out[:, ::2], x[:, :4])
    assert out[:, 1::2].min() >= 0


def test_channels_last_gives_the_same_logits() -> None:
    for name in SMALL:
        network = build(name).double().eval()
        images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
        expected = network(images)
        given = network.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
        torch.testing.assert_close(given, expected)
