"""Images of one look become those of another, by hand and in every forward pass of a network."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from kdschemes.models import InputSpec, StagedNetwork, create_model, crop_fraction, split
from kdschemes.models.inputs import AdaptInput, read_input

GIVEN = InputSpec(32, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OWN = InputSpec(48, (0.5, 0.4, 0.3), (0.5, 0.25, 0.125))


def by_hand(pixels: Tensor, look: InputSpec) -> Tensor:
    """Normalize pixels in 0..1 one channel at a time."""
    assert look.mean is not None
    assert look.std is not None
    return torch.stack([(pixels[:, c] - look.mean[c]) / look.std[c] for c in range(pixels.shape[1])], dim=1)


def pixels(side: int = 32, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-5)])
def test_images_become_what_normalizing_the_pixels_again_gives(
    dtype: torch.dtype, tolerance: float, memory_format: torch.memory_format
) -> None:
    x = pixels(dtype=dtype)
    images = by_hand(x, GIVEN).contiguous(memory_format=memory_format).requires_grad_()
    adapted = AdaptInput(GIVEN, InputSpec(32, OWN.mean, OWN.std))(images)
    torch.testing.assert_close(adapted, by_hand(x, OWN), rtol=0, atol=tolerance)
    assert adapted.dtype == dtype
    assert adapted.is_contiguous(memory_format=memory_format)
    adapted.sum().backward()
    assert images.grad is not None
    torch.testing.assert_close(images.grad[:, 1], torch.full_like(images[:, 1], 0.224 / 0.25))


@pytest.mark.parametrize("side", [16, 48])
def test_resizing_is_bilinear_with_antialiasing_and_commutes_with_normalizing(side: int) -> None:
    x = pixels()
    adapted = AdaptInput(GIVEN, InputSpec(side, OWN.mean, OWN.std))(by_hand(x, GIVEN))
    resized = interpolate(x, (side, side), mode="bilinear", antialias=True)
    torch.testing.assert_close(adapted, by_hand(resized, OWN), rtol=0, atol=1e-12)
    if side == 16:
        assert not torch.allclose(resized, interpolate(x, (side, side), mode="bilinear"), atol=1e-2)


@pytest.mark.parametrize("unknown", [InputSpec(32), InputSpec(32, OWN.mean), GIVEN])
def test_what_is_equal_or_unknown_changes_no_bit(unknown: InputSpec) -> None:
    images = pixels()
    assert AdaptInput(GIVEN, unknown)(images) is images
    assert AdaptInput(unknown, GIVEN)(images) is images


NETWORKS = ["resnet20", "vgg8", "timm/test_resnet", "timm/test_vit"]


def build(name: str) -> StagedNetwork:
    torch.manual_seed(0)
    network = create_model(name, num_classes=5, channels=3, image_size=48).double().eval()
    network.spec = network.spec.__class__(name, 5, 3, 48, OWN.mean, OWN.std)
    return network


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_every_forward_pass_of_a_network_sees_its_own_images(name: str) -> None:
    network, images = build(name), by_hand(pixels(), GIVEN)
    manual = by_hand(interpolate(pixels(), (48, 48), mode="bilinear", antialias=True), OWN)
    plain = network.forward_stages(manual)
    until = network.forward_until(manual, network.stage_names[1])
    state = list(network.state_dict())
    network.accept(GIVEN)
    close = {"rtol": 0, "atol": 1e-10}
    torch.testing.assert_close(network(images), plain[0], **close)
    torch.testing.assert_close(network.forward_stages(images), plain, **close)
    torch.testing.assert_close(network.forward_preactivations(images)[:2], plain, **close)
    torch.testing.assert_close(network.forward_until(images, network.stage_names[1]), until, **close)
    by_stage = list(network.forward_by_stage(images, network.stage_names))
    torch.testing.assert_close(by_stage, [*plain[1].values(), plain[0]], **close)
    assert list(network.state_dict()) == state
    if not name.startswith("timm/"):
        trunk, branch = split(network, network.stage_names[-1])
        torch.testing.assert_close(branch(trunk(images)[0])[0], plain[0], **close)
    network.accept(network.spec.input)
    assert torch.equal(network(manual), plain[0])


def test_a_pretrained_cfg_of_timm_is_read() -> None:
    cfg = {"mean": [0.5, 0.4, 0.3], "std": (0.5, 0.25, 0.125), "input_size": (3, 48, 48), "interpolation": "bicubic"}
    assert read_input(cfg, 3) == OWN
    grey = read_input(cfg, 1)  # averaged, as timm does
    assert grey.mean == pytest.approx((0.4,))
    assert grey.std == pytest.approx((0.875 / 3,))
    assert read_input({"input_size": (3, 24, 48)}, 3) == InputSpec()


@pytest.mark.parametrize(
    "cfg",
    [
        *({"mean": mean} for mean in ([], "ab", [math.nan] * 3, 0.5, [None] * 3)),
        *({"std": std} for std in ([0.0, 1.0, 1.0], [-1.0], {"a": 1})),
        *({"input_size": size} for size in (224, [3, 0, 0], [224, 224], "big")),
    ],
)
def test_a_damaged_pretrained_cfg_is_noticed(cfg: dict[str, object]) -> None:
    with pytest.raises((ValueError, TypeError)):
        read_input(cfg, 3)


def test_timm_resizes_to_as_many_pixels_as_the_data() -> None:
    for size in range(1, 2000):
        for kept in (0.875, 1.0):
            fraction = crop_fraction(kept, size)
            assert math.floor(size / fraction) == round(size / kept)
            assert fraction <= 1.0
    assert crop_fraction(0.875, 224) == 0.875
