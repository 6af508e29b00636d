"""Networks: sizes, stages, features, cuts and names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kdschemes.errors import UserError
from kdschemes.models import MODELS, count_macs, count_parameters, create_model, describe_stages, split, stages
from kdschemes.models.base import StagedNetwork
from tests import REPOSITORY

SMALL_TIMM = {
    "timm/resnet18": 32,
    "timm/mobilenetv3_small_050": 64,
    "timm/vit_tiny_patch16_224": 32,
    "timm/convnext_atto": 32,
    "timm/test_efficientnet": 32,
    "timm/test_nfnet": 32,
    "timm/test_coatnet": 64,
    "timm/mixer_s32_224": 64,
}


FIRST = {build.func: name for name, build in reversed(MODELS.items())}.values()
"""The first network of each family."""

EVERY = [pytest.param(name, marks=[pytest.mark.exhaustive] * (name not in FIRST)) for name in MODELS]


def build(name: str, classes: int = 10, channels: int = 3, size: int = 32) -> StagedNetwork:
    torch.manual_seed(0)
    return create_model(name, num_classes=classes, channels=channels, image_size=size)


def disturb(network: nn.Module) -> None:
    """Move batch norm's parameters and statistics off their initial values."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d) and module.affine:
                assert module.running_mean is not None
                assert module.running_var is not None
                for tensor in (module.weight, module.running_var):
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
                for tensor in (module.bias, module.running_mean):
                    tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)


@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [
        ("convnet", 1_199_876, 52_814_848),
        ("convnet_quarter", 80_588, 3_471_616),
        ("resnet18_cifar", 11_220_132, 555_468_800),
        ("resnet20", 278_324, 40_818_944),
        ("resnet56", 861_620, 125_753_600),
    ],
)
def test_parameters_and_macs(name: str, parameters: int, macs: int) -> None:
    network = build(name, classes=100)
    assert count_parameters(network) == parameters
    assert count_macs(network, 3, 32) == macs


def test_macs_of_convnet_by_hand() -> None:
    macs, before, side = 256 * 100, 3, 32
    for width in (32, 64, 128, 256):
        macs += 9 * side**2 * (before * width + width * width)
        before, side = width, side // 2
    assert count_macs(build("convnet", classes=100), 3, 32) == macs


def test_macs_include_attention() -> None:
    d, tokens, patches = 192, 5, 4
    block = tokens * 12 * d * d + 2 * tokens * tokens * d
    expected = patches * 3 * 16 * 16 * d + 12 * block + d * 10
    assert count_macs(build("timm/vit_tiny_patch16_224"), 3, 32) == expected


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_cifar_resnets_have_their_depth(depth: int) -> None:
    network = build(f"resnet{depth}")
    shortcuts = 2
    layers = sum(isinstance(module, nn.Conv2d | nn.Linear) for module in network.modules())
    assert layers == depth + shortcuts
    assert network.stage_names == ("layer1", "layer2", "layer3")


def test_convnet_layers() -> None:
    network = build("convnet", classes=100)
    block = network.get_submodule("stage2")
    assert [type(layer) for layer in block.children()] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 2
    assert all(layer.bias is not None for layer in block.children() if isinstance(layer, nn.Conv2d))
    assert {"stage1.conv1.weight", "stage4.bn2.running_var", "fc.weight"} <= network.plain_state().keys()


def test_stages_of_own_networks() -> None:
    found = stages(build("convnet", classes=100), 3, 32)
    assert [stage.name for stage in found] == ["stage1", "stage2", "stage3", "stage4"]
    assert [stage.shape for stage in found] == [(32, 32, 32), (64, 16, 16), (128, 8, 8), (256, 4, 4)]
    assert [stage.depth for stage in found] == pytest.approx([0.195, 0.463, 0.731, 1.0], abs=1e-3)
    found = stages(build("resnet18_cifar"), 3, 32)
    assert [stage.name for stage in found] == ["layer1", "layer2", "layer3", "layer4"]
    assert [stage.shape for stage in found] == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]


def test_stages_of_timm_models() -> None:
    found = stages(build("timm/resnet18"), 3, 32)
    assert [stage.name for stage in found] == ["layer1", "layer2", "layer3", "layer4"]
    assert [stage.shape for stage in found] == [(64, 8, 8), (128, 4, 4), (256, 2, 2), (512, 1, 1)]
    vit = stages(build("timm/vit_tiny_patch16_224"), 3, 32)
    assert [stage.name for stage in vit] == ["blocks_2", "blocks_5", "blocks_8", "blocks_11"]
    assert [stage.shape for stage in vit] == [(192, 2, 2)] * 4
    assert 0.2 < vit[0].depth < 0.4 < vit[1].depth < vit[2].depth < vit[3].depth <= 1


def test_describe_stages() -> None:
    lines = describe_stages(stages(build("resnet20"), 3, 32)).splitlines()
    assert [line.split() for line in lines] == [
        ["stage", "depth", "features"],
        ["layer1", "35.8", "%", "16x32x32"],
        ["layer2", "67.9", "%", "32x16x16"],
        ["layer3", "100.0", "%", "64x8x8"],
    ]


def test_probe_leaves_no_trace() -> None:
    network = build("convnet")
    network.get_submodule("stage2").eval()
    modes = [module.training for module in network.modules()]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    generator = torch.get_rng_state()
    stages(network, 3, 32)
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("name", ["convnet", "resnet18_cifar", "resnet20", *SMALL_TIMM])
def test_forward_is_forward_stages(name: str) -> None:
    size = SMALL_TIMM.get(name, 16)
    network = build(name, size=size)
    disturb(network)
    images = torch.randn(4, 3, size, size)
    for training in (True, False):
        network.train(training)
        torch.manual_seed(2)
        logits = network(images)
        torch.manual_seed(2)
        same, features = network.forward_stages(images)
        assert torch.equal(logits, same)
        assert logits.shape == (4, 10)
        assert tuple(features) == network.stage_names


@pytest.mark.parametrize("name", ["resnet20", "timm/resnet18", "timm/test_nfnet", "timm/test_vit"])
def test_features_are_what_the_next_stage_reads(name: str) -> None:
    network = build(name, size=64).eval()
    disturb(network)
    images = torch.randn(2, 3, 64, 64)
    _, features = network.forward_stages(images)
    for stage in network.stage_names:
        assert torch.equal(features[stage], network.forward_until(images, stage))


@pytest.mark.parametrize("name", [*EVERY, "timm/test_vit", "timm/test_convnext", "timm/mobilenetv3_small_050"])
def test_gradient_reaches_every_parameter(name: str) -> None:
    network = build(name)
    disturb(network)
    network.eval()
    nn.functional.cross_entropy(network(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name


@pytest.mark.parametrize("name", ["convnet", "resnet18_cifar", "resnet20"])
def test_digits(name: str) -> None:
    network = build(name, channels=1, size=8)
    logits, features = network(torch.randn(2, 1, 8, 8)), stages(network, 1, 8)
    assert logits.shape == (2, 10)
    assert features[-1].shape[1:] == ((2, 2) if name == "resnet20" else (1, 1))


def test_resnet18_cifar_is_the_patched_timm_model() -> None:
    import timm

    plain = timm.create_model("resnet18", num_classes=100)
    plain.conv1, plain.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    network = build("resnet18_cifar", classes=100)
    assert list(network.plain_state()) == list(plain.state_dict())
    for name, tensor in network.plain_state().items():
        if name.endswith(("conv1.weight", "conv2.weight")) and name != "conv1.weight":
            assert float(tensor.std()) == pytest.approx(float(plain.state_dict()[name].std()), rel=0.05)
        elif "bn" in name:
            assert torch.equal(tensor, plain.state_dict()[name]), name
    disturb(network)
    plain.load_state_dict(network.plain_state(), strict=True)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(network.eval()(images), plain.eval()(images))


def test_he_initialization() -> None:
    weight = build("resnet56").get_parameter("layer3.4.conv1.weight")
    assert float(weight.detach().std()) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.05)


@pytest.mark.parametrize("name", EVERY)
def test_trunk_and_branch_are_the_network(name: str) -> None:
    network = build(name)
    disturb(network)
    images = torch.randn(4, 3, 32, 32)
    logits, features = network.eval().forward_stages(images)
    for stage in network.stage_names[1:]:
        trunk, branch = split(network, stage)
        tensor, shallow = trunk.eval()(images)
        branch_logits, deep = branch.eval()(tensor)
        assert torch.equal(branch_logits, logits)
        assert list(shallow | deep) == list(features)
        assert next(iter(deep)) == stage
        assert all(torch.equal(feature, features[key]) for key, feature in (shallow | deep).items())
        assert list(trunk.state_dict() | branch.state_dict()) == list(network.plain_state())
        assert not trunk.state_dict().keys() & branch.state_dict().keys()


def test_trunk_with_another_branch_is_a_plain_network() -> None:
    first, second = build("resnet20"), build("resnet20")
    disturb(second)
    trunk, _ = split(first, "layer2")
    _, branch = split(second, "layer2")
    images = torch.randn(4, 3, 32, 32)
    joined = branch.eval()(trunk.eval()(images)[0])[0]
    plain = build("resnet20")
    plain.load_plain_state(trunk.state_dict() | branch.state_dict())
    assert torch.equal(plain.eval()(images), joined)


def test_a_stem_alone_can_be_the_trunk() -> None:
    trunk, _ = split(build("resnet20"), "layer1")
    assert {name.partition(".")[0] for name in trunk.state_dict()} == {"conv1", "bn1"}


def test_cuts_that_are_refused() -> None:
    with pytest.raises(UserError, match=r"timm/test_vit .*convnet, resnet18_cifar, resnet20"):
        split(build("timm/test_vit"), "blocks_0")
    with pytest.raises(UserError, match="unknown stage of resnet20 'layr2'; did you mean 'layer2'"):
        split(build("resnet20"), "layr2")
    with pytest.raises(UserError, match="nothing comes before stage1"):
        split(build("convnet"), "stage1")


def test_unknown_names() -> None:
    with pytest.raises(UserError, match=r"unknown model 'resnet_20'; did you mean 'resnet20'\?.*timm/NAME"):
        build("resnet_20")
    with pytest.raises(UserError, match=r"unknown timm model 'resnet81'; did you mean '.*resnet") as caught:
        build("timm/resnet81")
    assert len(str(caught.value)) < 200
    with pytest.raises(UserError, match="convnet has no pretrained weights"):
        create_model("convnet", num_classes=10, channels=3, image_size=32, pretrained=True)
    with pytest.raises(UserError, match=r"timm/test_vit\.nosuch"):
        create_model("timm/test_vit.nosuch", num_classes=10, channels=3, image_size=32, pretrained=True)


def test_images_that_are_too_small() -> None:
    with pytest.raises(UserError, match=r"convnet .* needs 8x8 or more, not 4x4"):
        build("convnet", size=4)
    with pytest.raises(UserError, match="timm/vgg11 does not accept 3x16x16 images") as caught:
        stages(build("timm/vgg11", size=16), 3, 16)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"timm/vit_tiny_patch16_224 .* 3x8x8 images"):
        stages(build("timm/vit_tiny_patch16_224", size=8), 3, 8)


def test_timm_grey_images_and_own_classes() -> None:
    for name in ("timm/test_vit", "timm/test_convnext"):
        network = build(name, classes=7, channels=1)
        assert network(torch.randn(2, 1, 32, 32)).shape == (2, 7)
        assert [network.plain_state()[f"{c}.weight"].shape[0] for c in network.classifiers] == [7]


def test_pretrained_with_other_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm
    from timm.models import _registry as registry

    torch.manual_seed(3)
    published = timm.create_model("test_vit", num_classes=1000)
    torch.save(published.state_dict(), tmp_path / "published.pth")
    tag = registry._model_pretrained_cfgs["test_vit.r160_in1k"]
    local = type(tag)(**{**tag.__dict__, "file": str(tmp_path / "published.pth"), "hf_hub_id": None})
    monkeypatch.setitem(registry._model_pretrained_cfgs, "test_vit.r160_in1k", local)
    network = create_model("timm/test_vit.r160_in1k", num_classes=5, channels=3, image_size=160, pretrained=True)
    state = network.plain_state()
    assert state["head.weight"].shape[0] == 5
    for name, tensor in published.state_dict().items():
        assert name.startswith("head.") or torch.equal(state[name], tensor), name
    smaller = create_model("timm/test_vit.r160_in1k", num_classes=5, channels=1, image_size=32, pretrained=True)
    assert smaller(torch.zeros(1, 1, 32, 32)).shape == (1, 5)
    assert torch.equal(smaller.plain_state()["blocks.0.attn.qkv.weight"], published.blocks[0].attn.qkv.weight)


def test_creation_follows_the_callers_seed() -> None:
    same = zip(build("resnet20").plain_state().values(), build("resnet20").plain_state().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)
    other = create_model("resnet20", num_classes=10, channels=3, image_size=32)
    assert not torch.equal(other.plain_state()["fc.weight"], build("resnet20").plain_state()["fc.weight"])


@pytest.mark.slow
def test_own_networks_need_no_timm() -> None:
    code = "import sys; from kdschemes.models import create_model as c; "
    code += "c('resnet20', num_classes=10, channels=3, image_size=32); assert 'timm' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


@pytest.mark.parametrize("name", ["convnet", "resnet18_cifar", "timm/test_vit", "timm/test_convnext"])
def test_bfloat16_and_double(name: str) -> None:
    for dtype in (torch.bfloat16, torch.float64):
        network = build(name).to(dtype)
        logits, features = network.forward_stages(torch.randn(2, 3, 32, 32, dtype=dtype))
        assert logits.dtype == dtype
        assert all(isinstance(f, Tensor) and f.dtype == dtype for f in features.values())
