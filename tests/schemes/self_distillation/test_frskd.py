"""Feature refinement via self-knowledge distillation: a self-teacher refines the network's maps and teaches it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from kdschemes.config.data import Digits
from kdschemes.data import open_data
from kdschemes.errors import UserError
from kdschemes.evaluation.cost import head_costs
from kdschemes.models import count_macs, count_parameters
from kdschemes.schemes.self_distillation.frskd import BiFPN, Fuse, shrunk
from tests.losses import oracles
from tests.losses.oracles import Array
from tests.schemes.cases import base, build, network_of, random_batch, trained
from tests.schemes.formulas import Formula, Seen, array
from tests.schemes.self_distillation.cases import any_begins, reached

FRSKD = base("self", "frskd")


State = Mapping[str, Array]


def expected_maps(maps: list[Array], state: State, *, depth: int) -> list[Array]:
    """The maps of the pyramid in training mode, after the paper's figure; `state` are its parameters by name."""
    maps = [np.maximum(m, 0) for m in maps]
    n = len(maps)
    lateral = [pointwise(m, state, f"lateral_up.{i}") for i, m in enumerate(maps)]
    top_down: dict[int, Array] = {n - 1: lateral[n - 1]}
    for i in range(n - 2, -1, -1):
        deeper = pointwise(nearest(top_down[i + 1], *maps[i].shape[2:]), state, f"up.{i}")
        fused = fuse([lateral[i], deeper], state[f"fuse_up.{i}.weights"])
        top_down[i] = np.maximum(block(fused, state, f"block_up.{i}", depth), 0)
    out = [top_down[0]]
    for i in range(1, n):
        k = i - 1
        inputs = [pointwise(maps[i], state, f"lateral_down.{k}")]
        if i < n - 1:
            inputs.append(top_down[i])
        down = out[k]
        while down.shape[2] > maps[i].shape[2]:
            down = max_pooled(down)
        inputs.append(pointwise(down, state, f"down.{k}"))
        fused = fuse(inputs, state[f"fuse_down.{k}.weights"])
        out.append(np.maximum(block(fused, state, f"block_down.{k}", depth), 0))
    return out


def fuse(inputs: list[Array], weights: Array) -> Array:
    positive = np.maximum(weights, 0)
    total = np.zeros_like(inputs[0])
    for weight, x in zip(positive, inputs, strict=True):
        total += weight / (positive.sum() + 1e-6) * x
    return total


def normalize(x: Array, scale: Array, shift: Array) -> Array:
    mean, variance = x.mean(axis=(0, 2, 3), keepdims=True), x.var(axis=(0, 2, 3), keepdims=True)
    shape = (1, -1, 1, 1)
    return np.asarray((x - mean) / np.sqrt(variance + 1e-5) * scale.reshape(shape) + shift.reshape(shape))


def pointwise(x: Array, state: State, name: str) -> Array:
    x = np.einsum("nchw,dc->ndhw", x, state[f"{name}.0.weight"][:, :, 0, 0])
    return np.maximum(normalize(x, state[f"{name}.1.weight"], state[f"{name}.1.bias"]), 0)


def block(x: Array, state: State, name: str, depth: int) -> Array:
    for layer in range(depth):
        at = 4 * layer
        x = depthwise(np.maximum(x, 0) if layer else x, state[f"{name}.{at}.weight"])
        x = np.einsum("nchw,dc->ndhw", x, state[f"{name}.{at + 1}.weight"][:, :, 0, 0])
        x = normalize(x, state[f"{name}.{at + 2}.weight"], state[f"{name}.{at + 2}.bias"])
    return x


def depthwise(x: Array, kernel: Array) -> Array:
    height, width = x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    out = np.zeros_like(x)
    for a, b in np.ndindex(3, 3):
        out += padded[:, :, a : a + height, b : b + width] * kernel[None, :, 0, a, b, None, None]
    return out


def nearest(x: Array, height: int, width: int) -> Array:
    rows = [i * x.shape[2] // height for i in range(height)]
    columns = [j * x.shape[3] // width for j in range(width)]
    return x[:, :, rows][:, :, :, columns]


def max_pooled(x: Array) -> Array:
    """3x3 maxima of stride 2 of a map that is not negative: ceil(side / 2), zeros around it."""
    half = [-(-side // 2) for side in x.shape[2:]]
    before = [side % 2 for side in x.shape[2:]]
    padded = np.pad(x, ((0, 0), (0, 0), (before[0], 2), (before[1], 2)))
    out = np.zeros((*x.shape[:2], *half))
    for i, j in np.ndindex(*half):
        out[:, :, i, j] = padded[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max(axis=(2, 3))
    return out


def expected_total(seen: Seen) -> float:
    """CE of both, KD, and attention transfer of every pair of maps with more than one position."""
    losses = seen.config.losses
    (z, maps), (v, refined) = (
        (seen.logits(name), [array(feature) for feature in seen.out[name].features.values()])
        for name in ("student", "self_teacher")
    )
    temperature, alpha, beta = losses.response.temperature, losses.response.weight, losses.feature.weight
    target = oracles.one_hot(seen.labels, z.shape[1])
    total = oracles.cross_entropy(z, target) + oracles.cross_entropy(v, target)
    total += alpha * oracles.kd(z, v, temperature=temperature)
    pairs = [(f, g) for f, g in zip(maps, refined, strict=True) if f[0, 0].size > 1]
    return total + beta * sum(oracles.attention_transfer(f, g) for f, g in pairs)


FORMULA: Formula = expected_total
EXACT = {"frskd-other": [*FRSKD, "model=convnet", "losses.response.temperature=2", "losses.feature.weight=7"]}
VARIANTS = {"self-frskd-detached": [*FRSKD, "scheme.detach=true", "scheme.width=1", "scheme.depth=1"]}


@pytest.mark.parametrize("sides", [(8, 4, 2, 1), (7, 4), (6, 6, 3)])
@pytest.mark.parametrize("depth", [1, 2])
def test_the_pyramid_is_the_papers(sides: tuple[int, ...], depth: int) -> None:
    torch.manual_seed(0)
    channels = [2, 3, 4, 2][: len(sides)]
    pyramid = BiFPN(channels, width=2, depth=depth).double()
    with torch.no_grad():
        for name, p in pyramid.named_parameters():
            p.copy_(torch.rand_like(p) - 0.2 if name.endswith("weights") else torch.randn_like(p))
    maps = [torch.randn(3, c, side, side, dtype=torch.float64) for c, side in zip(channels, sides, strict=True)]
    refined = pyramid(maps)
    assert [tuple(m.shape[1:]) for m in refined] == [(2 * c, s, s) for c, s in zip(channels, sides, strict=True)]
    state = {name: array(p) for name, p in pyramid.named_parameters()}
    for ours, expected in zip(refined, expected_maps([array(m) for m in maps], state, depth=depth), strict=True):
        np.testing.assert_allclose(array(ours), expected, rtol=1e-9, atol=1e-10)


def test_fusion_weighs_by_shares_that_sum_to_one() -> None:
    fuse = Fuse(3).double()
    ones = torch.ones(1, 2, 3, 3, dtype=torch.float64)
    assert fuse(ones, ones, ones).flatten()[0].item() == pytest.approx(1.0, abs=1e-6)
    fuse.weights.data = torch.tensor([3.0, -1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(fuse(ones, 100 * ones, 5 * ones), 2 * ones, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize(
    ("side", "goal", "by_maxima"), [(8, 2, 2), (7, 4, 4), (7, 3, 4), (4, 4, 4), (2, 1, 1), (1, 1, 1), (3, 5, 3)]
)
def test_maps_of_any_side_are_resized_to_their_neighbors(side: int, goal: int, by_maxima: int) -> None:
    x = torch.rand(2, 3, side, side, dtype=torch.float64)
    expected = array(x)
    while expected.shape[2] > by_maxima:
        expected = max_pooled(expected)
    expected = nearest(expected, goal, goal)
    np.testing.assert_array_equal(array(shrunk(x, (goal, goal))), expected)


def test_who_learns_from_a_term() -> None:
    batch = random_batch()
    for overrides, shared in (([], True), (["scheme.detach=true"], False)):
        scheme = build(*FRSKD, *overrides).train()
        own = reached(scheme, "ce/self_teacher", batch)
        assert any_begins(own, "nodes.self_teacher")
        assert any_begins(own, "nodes.student.network.layer1") == shared
        assert not any_begins(own, "nodes.student.network.fc")
        for name in ("kd/self_teacher->student", "at/self_teacher->student"):
            taught = reached(scheme, name, batch)
            assert any_begins(taught, "nodes.student.network.layer1")
            assert not any_begins(taught, "nodes.self_teacher")


def test_the_student_costs_no_more_than_its_network() -> None:
    data = open_data(Digits(), seed=0, device=torch.device("cpu"))
    scheme = build(*FRSKD, dtype=torch.float32)
    assert scheme.heads == ("student", "self_teacher")
    network, costs = network_of(scheme, "student"), head_costs(scheme, data)
    assert costs["student"] == {"parameters": count_parameters(network), "macs": count_macs(network, 1, 8)}
    both = sum(p.numel() for p in trained(scheme))
    assert costs["self_teacher"]["parameters"] == both
    assert costs["self_teacher"]["macs"] > costs["student"]["macs"]
    plain = build(*base("supervised", "ce"), dtype=torch.float32)
    images = random_batch(dtype=torch.float32)
    alone = network_of(plain, "student").eval()(images.images)
    assert torch.equal(scheme.eval().predict(images, ["student"])["student"].logits, alone)


def test_batch_norm_of_the_self_teacher_is_of_the_plain_kind() -> None:
    scheme = build(*FRSKD)
    kinds = {type(m) for m in scheme.nodes["self_teacher"].modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    assert kinds == {nn.BatchNorm2d}
    sizes = [m.num_features for m in scheme.nodes["self_teacher"].modules() if isinstance(m, nn.BatchNorm2d)]
    assert set(sizes) == {32, 64, 128}
    assert all(b == 2 * a for a, b in pairwise(sorted(set(sizes))))


def test_a_network_of_one_stage_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = sys.modules["kdschemes.schemes.self_distillation.frskd"]
    monkeypatch.setattr(builder, "probe", lambda nodes, data_spec: {"student": {"only": (4, 2, 2)}})
    with pytest.raises(UserError, match=r"frskd .*resnet20 .*1"):
        build(*FRSKD, "scheme.width=3")
