"""RepDistiller's networks, rewritten under their names, compute what ours compute with their weights."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from kdschemes.models import MODELS, create_model, load_weights
from tests import REPOSITORY

CLASSES = 7


class Theirs:
    """A network under RepDistiller's names; its random tensors come into being when a layer is called first."""

    def __init__(self) -> None:
        self.state: dict[str, Tensor] = {}
        self.generator = torch.Generator().manual_seed(0)

    def tensor(self, name: str, *shape: int, spread: float = 0.1, mean: float = 0.0) -> Tensor:
        if name not in self.state:
            self.state[name] = torch.randn(shape, generator=self.generator) * spread + mean
        return self.state[name]

    def conv(
        self, x: Tensor, name: str, out: int, kernel: int = 3, stride: int = 1, groups: int = 1, bias: bool = False
    ) -> Tensor:
        inputs = x.shape[1] // groups
        spread = (2 / (inputs * kernel**2)) ** 0.5
        weight = self.tensor(f"{name}.weight", out, inputs, kernel, kernel, spread=spread)
        own = self.tensor(f"{name}.bias", out) if bias else None
        return F.conv2d(x, weight, own, stride, kernel // 2, groups=groups)

    def bn(self, x: Tensor, name: str) -> Tensor:
        width = x.shape[1]
        mean, variance = self.tensor(f"{name}.running_mean", width), self.tensor(f"{name}.running_var", width, mean=1)
        weight, bias = self.tensor(f"{name}.weight", width, mean=1), self.tensor(f"{name}.bias", width)
        self.state[f"{name}.num_batches_tracked"] = torch.tensor(9)
        return F.batch_norm(x, mean, variance.abs_(), weight, bias)

    def classify(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.tensor(f"{name}.weight", CLASSES, x.shape[1]), self.tensor(f"{name}.bias", CLASSES)
        return F.linear(x.mean((2, 3)), weight, bias)


def shuffled(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def resnet(net: Theirs, x: Tensor, depth: int, stem: int, widths: tuple[int, ...]) -> Tensor:
    x = net.bn(net.conv(x, "conv1", stem), "bn1").relu()
    for k, width in enumerate(widths, start=1):
        for i in range((depth - 2) // 6):
            name, stride = f"layer{k}.{i}", 2 if k > 1 and i == 0 else 1
            out = net.bn(net.conv(x, f"{name}.conv1", width, 3, stride), f"{name}.bn1").relu()
            out = net.bn(net.conv(out, f"{name}.conv2", width), f"{name}.bn2")
            if x.shape[1] != width:
                x = net.bn(net.conv(x, f"{name}.downsample.0", width, 1, stride), f"{name}.downsample.1")
            x = (x + out).relu()
    return net.classify(x, "fc")


def resnet18(net: Theirs, x: Tensor) -> Tensor:
    x = net.bn(net.conv(x, "conv1", 64), "bn1").relu()
    for k, width in enumerate((64, 128, 256, 512), start=1):
        for i in range(2):
            name, stride = f"layer{k}.{i}", 2 if k > 1 and i == 0 else 1
            out = net.bn(net.conv(x, f"{name}.conv1", width, 3, stride), f"{name}.bn1").relu()
            out = net.bn(net.conv(out, f"{name}.conv2", width), f"{name}.bn2")
            if x.shape[1] != width:
                x = net.bn(net.conv(x, f"{name}.shortcut.0", width, 1, stride), f"{name}.shortcut.1")
            x = (x + out).relu()
    return net.classify(x, "linear")


def wide_resnet(net: Theirs, x: Tensor, depth: int, widen: int) -> Tensor:
    x = net.conv(x, "conv1", 16)
    for k, width in enumerate((16 * widen, 32 * widen, 64 * widen), start=1):
        for i in range((depth - 4) // 6):
            name, stride = f"block{k}.layer.{i}", 2 if k > 1 and i == 0 else 1
            first = net.bn(x, f"{name}.bn1").relu()
            out = net.bn(net.conv(first, f"{name}.conv1", width, 3, stride), f"{name}.bn2").relu()
            x = x if x.shape[1] == width else net.conv(first, f"{name}.convShortcut", width, 1, stride)
            x = x + net.conv(out, f"{name}.conv2", width)
    return net.classify(net.bn(x, "bn1").relu(), "fc")


def vgg(net: Theirs, x: Tensor, convolutions: int) -> Tensor:
    for k, width in enumerate((64, 128, 256, 512, 512)):
        for i in range(convolutions):
            x = net.bn(net.conv(x, f"block{k}.{3 * i}", width, bias=True), f"block{k}.{3 * i + 1}").relu()
        x = F.max_pool2d(x, 2) if k < 3 else x
    return net.classify(x, "classifier")


def mobile_half(net: Theirs, x: Tensor) -> Tensor:
    x = net.bn(net.conv(x, "conv1.0", 16, 3, 2), "conv1.1").relu()
    groups = ((1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2), (6, 160, 1, 1))
    for k, (expansion, width, count, first) in enumerate(groups):
        for i in range(count):
            name, stride, inner = f"blocks.{k}.{i}.conv", first if i == 0 else 1, x.shape[1] * expansion
            out = net.bn(net.conv(x, f"{name}.0", inner, 1), f"{name}.1").relu()
            out = net.bn(net.conv(out, f"{name}.3", inner, 3, stride, inner), f"{name}.4").relu()
            out = net.bn(net.conv(out, f"{name}.6", width, 1), f"{name}.7")
            x = x + out if stride == 1 and x.shape[1] == width else out
    return net.classify(net.bn(net.conv(x, "conv2.0", 1280, 1), "conv2.1").relu(), "classifier.0")


def shuffle_v1(net: Theirs, x: Tensor) -> Tensor:
    x = net.bn(net.conv(x, "conv1", 24, 1), "bn1").relu()
    for k, (width, count) in enumerate(((240, 4), (480, 8), (960, 4)), start=1):
        for i in range(count):
            name, groups = f"layer{k}.{i}", 1 if x.shape[1] == 24 else 3
            wide = width - x.shape[1] if i == 0 else width
            inner = wide // 4
            out = net.bn(net.conv(x, f"{name}.conv1", inner, 1, groups=groups), f"{name}.bn1").relu()
            out = net.conv(shuffled(out, groups), f"{name}.conv2", inner, 3, 2 if i == 0 else 1, inner)
            out = net.bn(net.conv(net.bn(out, f"{name}.bn2").relu(), f"{name}.conv3", wide, 1, groups=3), f"{name}.bn3")
            x = (torch.cat([out, F.avg_pool2d(x, 3, 2, 1)], 1) if i == 0 else out + x).relu()
    return net.classify(x, "linear")


def shuffle_v2(net: Theirs, x: Tensor) -> Tensor:
    x = net.bn(net.conv(x, "conv1", 24, 1), "bn1").relu()
    for k, (before, width) in enumerate(pairwise((24, 116, 232, 464)), start=1):
        name, half = f"layer{k}.0", width // 2
        left = net.bn(net.conv(x, f"{name}.conv1", before, 3, 2, before), f"{name}.bn1")
        left = net.bn(net.conv(left, f"{name}.conv2", half, 1), f"{name}.bn2").relu()
        right = net.bn(net.conv(x, f"{name}.conv3", half, 1), f"{name}.bn3").relu()
        right = net.bn(net.conv(right, f"{name}.conv4", half, 3, 2, half), f"{name}.bn4")
        right = net.bn(net.conv(right, f"{name}.conv5", half, 1), f"{name}.bn5").relu()
        x = shuffled(torch.cat([left, right], 1), 2)
        for i in range(1, (4, 8, 4)[k - 1]):
            name = f"layer{k}.{i}"
            kept, out = x[:, :half], x[:, half:]
            out = net.bn(net.conv(out, f"{name}.conv1", half, 1), f"{name}.bn1").relu()
            out = net.bn(net.conv(out, f"{name}.conv2", half, 3, 1, half), f"{name}.bn2")
            out = net.bn(net.conv(out, f"{name}.conv3", half, 1), f"{name}.bn3").relu()
            x = shuffled(torch.cat([kept, out], 1), 2)
    return net.classify(net.bn(net.conv(x, "conv2", 1024, 1), "bn2").relu(), "linear")


NETWORKS: dict[str, Callable[[Theirs, Tensor], Tensor]] = {
    **{f"resnet{d}": partial(resnet, depth=d, stem=16, widths=(16, 32, 64)) for d in (20, 32, 44, 56, 110)},
    **{f"resnet{d}x4": partial(resnet, depth=d, stem=32, widths=(64, 128, 256)) for d in (8, 32)},
    **{f"wrn_{d}_{w}": partial(wide_resnet, depth=d, widen=w) for d in (16, 40) for w in (1, 2)},
    "vgg8": partial(vgg, convolutions=1),
    "vgg13": partial(vgg, convolutions=2),
    "mobilenet_v2": mobile_half,
    "shufflenet_v1": shuffle_v1,
    "shufflenet_v2": shuffle_v2,
    "resnet18_cifar": resnet18,
}
"""Our name of each of their networks."""


DEEP = ("resnet32", "resnet44", "resnet56", "resnet110", "resnet32x4", "wrn_40_1", "wrn_40_2", "vgg13")


@pytest.mark.parametrize(
    ("name", "legacy"),
    [
        *(pytest.param(name, False, marks=[pytest.mark.slow] * (name in DEEP)) for name in NETWORKS),
        *(("wrn_16_2", True), ("vgg8", True)),
    ],
)
@torch.no_grad()
def test_their_last_checkpoint_gives_their_logits(name: str, legacy: bool, tmp_path: Path) -> None:
    """The file is written as by their `train_teacher.py`, today or with a torch before 1.6, as the published ones."""
    theirs = Theirs()
    images = torch.randn(2, 3, 32, 32, generator=theirs.generator)
    logits = NETWORKS[name](theirs, images)
    options = argparse.Namespace(model=name, lr_decay_epochs=[150, 180, 210], learning_rate=0.05)
    rate = options.learning_rate * 0.1 ** np.sum(np.asarray(options.lr_decay_epochs) < 240)
    assert isinstance(rate, np.float64)  # NumPy's scalars come into the optimizer's state
    content = {"opt": options, "model": theirs.state, "optimizer": {"state": {}, "param_groups": [{"lr": rate}]}}
    file = tmp_path / f"{name}_last.pth"
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    ours = create_model(name, num_classes=CLASSES, channels=3, image_size=32)
    load_weights(ours, file, num_classes=CLASSES)
    assert ours.notes == ()
    torch.testing.assert_close(ours.eval()(images), logits, rtol=1e-3, atol=1e-4 * float(logits.std()))
    assert (logits[0] - logits[1]).std() > 0.01 * logits.std()


def test_the_teacher_of_each_recipe_of_the_public_tables_can_be_theirs() -> None:
    ours = ("convnet", "lenet5", "plain")
    assert {name for name in MODELS if not name.startswith(ours)} == NETWORKS.keys()
    table = yaml.safe_load((REPOSITORY / "experiments" / "repdistiller.yaml").read_text())
    teachers = [
        column["keys"]["teacher"]
        for row in table["rows"].values()
        for column, published in zip(table["columns"].values(), row["published"], strict=True)
        if published is not None
    ]
    assert set(teachers) < NETWORKS.keys()
    assert (len(teachers), sum(name.startswith(("wrn", "vgg")) for name in teachers)) == (124, 53)
