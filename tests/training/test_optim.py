"""The optimizer's groups, the rate of a step, and clipping that leaves the other networks alone."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import timm
import timm.optim
import torch
from torch import Tensor, nn

from kdschemes.config import Optim
from kdschemes.config.load import build_config, load_config
from kdschemes.config.optimizers import TIMM_OPTIMIZERS, WITH_MOMENTUM
from kdschemes.core.distillation import Distillation
from kdschemes.core.types import Batch, DataSpec, Progress
from kdschemes.errors import UserError
from kdschemes.models import CustomNetwork, ModelSpec, create_model
from kdschemes.schemes import build_scheme
from kdschemes.storage.checkpoint import load_state, save_state
from kdschemes.training.optim import (
    build_optimizer,
    clip_gradients,
    limit_weights,
    momentum_schedule,
    rate_schedule,
    set_momentum,
    set_rate,
)

DATA_SPEC = DataSpec(num_classes=10, channels=1, image_size=8)


def parameters(*sizes: int) -> list[nn.Parameter]:
    return [nn.Parameter(torch.arange(1.0, size + 1)) for size in sizes]


def peers() -> Distillation:
    return build_scheme(build_config({"scheme": {"name": "online", "peers": 2}}), DATA_SPEC)


def backward(scheme: Distillation, samples: slice, step_size: int = 12) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(step_size, 1, 8, 8, generator=generator)
    labels = torch.arange(step_size) % 10
    index = torch.arange(step_size)
    batch = Batch(images[samples], labels[samples], index[samples], step_size=step_size)
    scheme(batch, Progress(0, 10, 5)).total.backward()


def test_one_group_a_network_with_every_trained_parameter_once() -> None:
    scheme = peers()
    groups = scheme.parameter_groups()
    optimizer = build_optimizer(Optim(), groups)
    assert [group["name"] for group in optimizer.param_groups] == list(groups) == ["peer0", "peer1"]
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(held) == len({id(parameter) for parameter in held})
    assert {id(p) for p in held} == {id(p) for p in scheme.parameters() if p.requires_grad}


def test_projections_train_with_the_network_that_they_serve() -> None:
    scheme = build_scheme(build_config({"scheme": {"name": "self", "exit_head": "linear"}}), DATA_SPEC)
    groups = scheme.parameter_groups()
    trained = {id(p) for p in scheme.parameters() if p.requires_grad}
    inside = {id(p) for p in scheme.nodes.parameters() if p.requires_grad}
    assert list(groups) == ["student"]
    assert {id(p) for p in groups["student"]} == trained > inside


def test_sgd_steps_with_nesterov_momentum_and_decay_on_every_parameter() -> None:
    options = Optim(lr=0.1, momentum=0.9, weight_decay=0.01)
    (weight,) = group = parameters(2)
    optimizer = build_optimizer(options, {"student": group})
    velocity, expected = torch.zeros(2), weight.detach().clone()
    for gradient in (torch.tensor([1.0, -2.0]), torch.tensor([0.5, 0.5])):
        weight.grad = gradient.clone()
        optimizer.step()
        decayed = gradient + 0.01 * expected
        velocity = 0.9 * velocity + decayed
        expected = expected - 0.1 * (decayed + 0.9 * velocity)
    assert torch.allclose(weight, expected, rtol=1e-6)


def test_sgd_without_momentum_or_nesterov() -> None:
    for options in (Optim(momentum=0.0), Optim(nesterov=False)):
        (group,) = build_optimizer(options, {"student": parameters(2)}).param_groups
        assert group["nesterov"] is False
        assert group["momentum"] == options.momentum


def test_adamw_steps_with_decoupled_decay() -> None:
    options = Optim(name="adamw", lr=0.1, momentum=0.8, weight_decay=0.5)
    (weight,) = group = parameters(2)
    optimizer = build_optimizer(options, {"student": group})
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.999)
    weight.grad = torch.tensor([3.0, -0.01])
    optimizer.step()
    assert torch.allclose(weight, torch.tensor([1.0, 2.0]) * (1 - 0.1 * 0.5) - 0.1 * torch.tensor([1.0, -1.0]))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_vectors_may_be_free_of_weight_decay(name: str) -> None:
    options = Optim(name=name, lr=0.1, weight_decay=0.5, decay_vectors=False)  # type: ignore[arg-type]
    matrix, vector = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    optimizer = build_optimizer(options, {"student": [matrix, vector]}, {"student": 2.0})
    assert [(group["name"], group["factor"]) for group in optimizer.param_groups] == [("student", 2.0)] * 2
    for parameter in (matrix, vector):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.equal(vector, torch.ones(2))
    assert (matrix < 1).all()


def test_the_rate_is_set_on_every_group() -> None:
    optimizer = build_optimizer(Optim(lr=0.4), {"peer0": parameters(2), "peer1": parameters(3), "peer2": parameters(1)})
    schedule = rate_schedule(Optim(lr=0.4, lr_schedule="step", milestones=[0.5], gamma=0.25, warmup_epochs=0.2))
    for step, expected in ((0, 0.2), (1, 0.4), (9, 0.4), (10, 0.1), (19, 0.1)):
        rate = set_rate(optimizer, schedule, Progress(step, total_steps=20, steps_per_epoch=10))
        assert rate == pytest.approx(expected, rel=1e-12)
        assert [group["lr"] for group in optimizer.param_groups] == [rate] * 3


def test_the_options_choose_the_schedule() -> None:
    middle = Progress(10, total_steps=20, steps_per_epoch=10)
    assert rate_schedule(Optim(lr=0.4, warmup_epochs=0.0))(middle) == pytest.approx(0.2)
    assert rate_schedule(Optim(lr=0.4, lr_schedule="constant"))(middle) == 0.4
    assert rate_schedule(Optim(lr=0.4, lr_schedule="step", milestones=[0.5]))(middle) == pytest.approx(0.04)


def test_each_network_is_clipped_by_its_own_norm() -> None:
    groups = {"peer0": parameters(2, 3), "peer1": parameters(2, 3), "peer2": parameters(4)}
    for name, size in (("peer0", 1e6), ("peer1", 0.01), ("peer2", 2.0)):
        for parameter in groups[name]:
            parameter.grad = torch.full_like(parameter, size)
    before = {name: [p.grad.clone() for p in group if p.grad is not None] for name, group in groups.items()}
    clip_gradients(groups, 1.0)

    def norm(name: str) -> float:
        return math.sqrt(sum(float(p.grad.square().sum()) for p in groups[name] if p.grad is not None))

    assert norm("peer0") == pytest.approx(1.0, rel=1e-4)
    assert norm("peer2") == pytest.approx(1.0, rel=1e-4)
    for parameter, gradient in zip(groups["peer1"], before["peer1"], strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradient)
    direction = torch.cat([p.grad for p in groups["peer0"] if p.grad is not None])
    assert torch.allclose(direction, torch.full_like(direction, 1 / math.sqrt(5)))


def test_a_huge_gradient_of_one_peer_leaves_the_step_of_the_other_as_it_is() -> None:
    def weights_after(factor: float) -> dict[str, torch.Tensor]:
        scheme = peers()
        groups = scheme.parameter_groups()
        optimizer = build_optimizer(Optim(clip_grad_norm=0.5), groups)
        backward(scheme, slice(None))
        for parameter in groups["peer0"]:
            assert parameter.grad is not None
            parameter.grad *= factor
        clip_gradients(groups, 0.5)
        optimizer.step()
        return {name: torch.cat([p.detach().flatten() for p in group]) for name, group in groups.items()}

    usual, huge = weights_after(1.0), weights_after(1e8)
    assert torch.equal(usual["peer1"], huge["peer1"])
    assert torch.isfinite(huge["peer0"]).all()


def test_micro_batches_add_up_to_the_gradient_of_the_whole_step() -> None:
    config = build_config({"scheme": {"name": "online", "peers": 2}, "model": {"name": "convnet"}})

    def gradients(*parts: slice) -> dict[str, torch.Tensor]:
        scheme = (
            build_scheme(config, DATA_SPEC).eval().double()
        )  # evaluation mode: batch norm would see the micro-batches
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(12, 1, 8, 8, generator=generator, dtype=torch.float64)
        labels, index = torch.arange(12) % 10, torch.arange(12)
        for part in parts:
            batch = Batch(images[part], labels[part], index[part], micro_size=len(index[part]), step_size=12)
            scheme(batch, Progress(0, 10, 5)).total.backward()
        return {name: p.grad for name, p in scheme.named_parameters() if p.grad is not None}

    whole, split = gradients(slice(None)), gradients(slice(0, 5), slice(5, 9), slice(9, 12))
    assert whole.keys() == split.keys()
    for name, gradient in whole.items():
        assert torch.allclose(split[name], gradient, rtol=1e-9, atol=1e-12), name


def test_the_rate_is_never_rescaled() -> None:
    """Accelerate steps a wrapped scheduler once a process, and others scale with the batch: neither happens here."""
    options = build_config(
        {"optim": {"lr": 0.3, "warmup_epochs": 0.0}, "train": {"batch_size": 512, "grad_accum_steps": 4}}
    ).optim
    assert rate_schedule(options)(Progress(0, 100, 10)) == 0.3


def test_momentum_rises_linearly_and_stays() -> None:
    options = Optim(momentum_start=0.5, momentum=0.9, momentum_epochs=4.0)
    optimizer = build_optimizer(options, {"peer0": parameters(2), "peer1": parameters(3)})
    for step, expected in ((0, 0.5), (10, 0.6), (25, 0.75), (40, 0.9), (90, 0.9)):
        set_momentum(optimizer, momentum_schedule(options), Progress(step, total_steps=100, steps_per_epoch=10))
        assert [group["momentum"] for group in optimizer.param_groups] == pytest.approx([expected] * 2, rel=1e-12)


def test_units_with_large_incoming_weights_are_scaled_down_and_the_others_left() -> None:
    layers = nn.Sequential(nn.Linear(4, 3), nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2), nn.Linear(4, 3))
    linear, conv, norm, frozen = layers
    frozen.weight.requires_grad_(False).fill_(5.0)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[3.0, 4, 0, 0], [0.1, 0, 0, 0], [6.0, 0, 0, 8]]))
        conv.weight.copy_(torch.stack([torch.full((2, 3, 3), 1.0), torch.full((2, 3, 3), 0.1)]))
        norm.weight.fill_(9.0)
        linear.bias.fill_(9.0)
    limit_weights(layers, 2.0)
    assert torch.allclose(linear.weight, torch.tensor([[1.2, 1.6, 0, 0], [0.1, 0, 0, 0], [1.2, 0, 0, 1.6]]))
    assert conv.weight.flatten(1).norm(dim=1).tolist() == pytest.approx([2.0, 0.1 * math.sqrt(18)], rel=1e-6)
    assert all(
        (values == size).all() for values, size in ((norm.weight, 9.0), (linear.bias, 9.0), (frozen.weight, 5.0))
    )


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["optim.name=adamw", "optim.momentum_start=0.5"], "set optim.name=sgd"),
        (["optim.max_norm=2", "train.fsdp=true"], "needs whole weights"),
    ],
)
def test_what_needs_sgd_or_whole_weights(words: list[str], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        load_config(words, recipes=Path())


# --------------------------------------------------------------------------------------------------- timm's optimizers


def weights() -> list[nn.Parameter]:
    """Return a convolution's weight, a matrix and a vector."""
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(*size, generator=generator)) for size in ((20, 18, 3, 3), (24, 17), (5,))]


def take_steps(optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 / (1 + step) * group["factor"]
            for parameter in group["params"]:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize("name", TIMM_OPTIMIZERS)
def test_timms_optimizers_resume_bit_for_bit(name: str, tmp_path: Path) -> None:
    options = Optim(name=f"timm/{name}", lr=0.01, weight_decay=0.05, decay_vectors=False)
    straight = weights()
    take_steps(build_optimizer(options, {"student": straight}), range(6))
    first = weights()
    optimizer = build_optimizer(options, {"student": first})
    take_steps(optimizer, range(3))
    save_state(tmp_path / "state.pt", {"optimizer": optimizer.state_dict()})
    second = [nn.Parameter(parameter.detach().clone()) for parameter in first]
    again = build_optimizer(options, {"student": second})
    again.load_state_dict(load_state(tmp_path / "state.pt")["optimizer"])
    take_steps(again, range(3, 6))
    for resumed, expected, start in zip(second, straight, weights(), strict=True):
        assert torch.equal(resumed, expected)
        assert torch.isfinite(resumed).all()
        assert not torch.equal(resumed, start)


@pytest.mark.parametrize("name", ["lamb", "adopt", "lars", "adan", "sgdp"])
def test_timms_optimizers_step_as_timm_makes_them(name: str) -> None:
    options = Optim(name=f"timm/{name}", lr=0.01, weight_decay=0.05, momentum=0.8 if name in WITH_MOMENTUM else 0.9)
    ours, theirs = weights(), weights()
    own = {"max_grad_norm": None} if name == "lamb" else {}
    reference = timm.optim.create_optimizer_v2(
        [{"params": theirs, "factor": 1.0}], name, lr=0.01, weight_decay=0.05, momentum=options.momentum, **own
    )
    take_steps(build_optimizer(options, {"student": ours}), range(3))
    take_steps(reference, range(3))
    assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("name", TIMM_OPTIMIZERS)
def test_timms_optimizers_do_not_couple_networks(name: str) -> None:
    """As LAMB's own clipping would, by the norm over all of them."""

    def stepped(factor: float) -> list[Tensor]:
        peers = weights(), weights()
        optimizer = build_optimizer(Optim(name=f"timm/{name}", lr=0.01), {"peer0": peers[0], "peer1": peers[1]})
        for parameter in peers[0]:
            parameter.grad = factor * parameter.detach()
        for parameter in peers[1]:
            parameter.grad = parameter.detach().clone()
        optimizer.step()
        return [parameter.detach() for parameter in peers[1]]

    assert all(map(torch.equal, stepped(1.0), stepped(1e3)))


def test_arguments_of_timms_optimizers() -> None:
    options = Optim(name="timm/adan", lr=0.01, kwargs={"betas": [0.9, 0.8, 0.7], "eps": 1e-6})
    (group,) = build_optimizer(options, {"student": weights()}).param_groups
    assert (group["betas"], group["eps"]) == ((0.9, 0.8, 0.7), 1e-6)
    with pytest.raises(UserError, match=r"timm/adan takes no argument 'beta'; did you mean 'betas'\?"):
        build_optimizer(Optim(name="timm/adan", kwargs={"beta": 1}), {"student": weights()})
    with pytest.raises(UserError, match=r"timm/adan does not accept optim\.kwargs=.*Invalid epsilon"):
        build_optimizer(Optim(name="timm/adan", kwargs={"eps": -1.0}), {"student": weights()})


# --------------------------------------------------------------------------------------------------------- layer decay


@pytest.mark.parametrize(("name", "side"), [("test_vit", 32), ("test_resnet", 32), ("test_convnext", 32)])
def test_layers_of_timms_networks_are_those_of_timm(name: str, side: int) -> None:
    network = create_model(f"timm/{name}", num_classes=10, channels=3, image_size=side)
    scales = network.lr_scales(0.5)
    expected = timm.optim.param_groups_layer_decay(network.network, layer_decay=0.5)
    assert {p: group["lr_scale"] for group in expected for p in group["params"]} == scales
    assert scales[network.network.get_classifier().weight] == 1.0
    assert min(scales.values()) == scales[next(network.network.parameters())] < 0.25


def test_layers_of_other_networks_are_their_stages() -> None:
    network = create_model("resnet8x4", num_classes=10, channels=1, image_size=8)
    scales = {name: network.lr_scales(0.5)[p] for name, p in network.named_parameters()}
    assert {name.partition(".")[0]: scale for name, scale in scales.items() if name.startswith(("layer", "fc"))} == {
        **{"layer1": 0.125, "layer2": 0.25, "layer3": 0.5, "fc": 1.0},
    }
    assert {scale for name, scale in scales.items() if not name.startswith(("layer", "fc"))} == {0.125}


def test_each_layer_has_its_rate_in_every_network_of_a_scheme() -> None:
    words = {"optim": {"layer_decay": 0.5, "decay_vectors": False}, "model": {"name": "resnet8x4"}}
    for topology in ("independent", "shared_trunk"):
        scheme = build_scheme(
            build_config({"scheme": {"name": "online", "peers": 2, "topology": topology}, **words}), DATA_SPEC
        )
        groups = scheme.parameter_groups()
        optimizer = build_optimizer(Optim(layer_decay=0.5), groups, scheme.lr_multipliers, scheme.lr_scales(0.5))
        held = [p for group in optimizer.param_groups for p in group["params"]]
        assert len(held) == len(set(held)) == sum(map(len, groups.values()))
        set_rate(optimizer, lambda _: 0.8, Progress(0, 10, 5))
        rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in scheme.named_parameters():
            stage = next((k for k in (1, 2, 3) if f"layer{k}." in name), 4 if ".fc." in name else 1)
            assert rates[parameter] == pytest.approx(0.8 * 0.5 ** (4 - stage)), name


def test_exits_and_projections_have_the_full_rate() -> None:
    scheme = build_scheme(build_config({"scheme": {"name": "self"}, "model": {"name": "resnet8x4"}}), DATA_SPEC)
    scales = scheme.lr_scales(0.5)
    outside = [p for name, p in scheme.named_parameters() if ".exits." in name or name.startswith("terms.")]
    assert outside
    assert all(scales.get(p, 1.0) == 1.0 for p in outside)


def test_layer_decay_is_refused_without_stages() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(64, 10))

        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1) @ self.weight

    network = CustomNetwork("flat", Flat(), num_classes=10, channels=1, image_size=8)
    network.spec = ModelSpec("flat", 10, 1, 8)
    with pytest.raises(UserError, match="goes by stages, and flat has none"):
        network.lr_scales(0.5)
