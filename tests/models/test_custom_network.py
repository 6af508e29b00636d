"""Any module that returns logits becomes a network with stages: which, with what features, and what is refused."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from kdschemes.config.code import ALLOWED, CodeRefused, allow_named
from kdschemes.errors import UserError
from kdschemes.models import CustomNetwork, ModelSpec, create_model, load_model, save_weights, stages
from kdschemes.models.custom_network import TRIAL, make_network

SIZES = {"num_classes": 10, "channels": 1, "image_size": 8}
IMAGES = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two convolutions, each followed by the same ReLU, which works in place."""

    def __init__(self, num_classes: int = 10, in_chans: int = 1, width: int = 4, answer: str = "logits") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(2 * width, num_classes)
        self.unused = nn.Linear(2, 2)
        self.answer = answer
        self.ran: list[str] = []

    def forward(self, images: Tensor) -> Any:
        self.ran.append("conv1")
        x = functional.max_pool2d(self.relu(self.conv1(images)), 2)
        self.ran.append("conv2")
        logits = self.fc(self.relu(self.conv2(x)).mean((2, 3)))
        answers = {"logits": logits, "object": SimpleNamespace(logits=logits), "mapping": {"logits": logits}}
        return answers.get(self.answer, [logits])


def wrap(network: nn.Module, stages: list[str] | None = None, **sizes: int) -> CustomNetwork:
    made = CustomNetwork("mine:Net", network, **(SIZES | sizes), stages=stages)
    made.spec = ModelSpec("mine:Net", **(SIZES | sizes))
    return made.eval()


def test_features_are_what_the_modules_returned_then_although_relus_write_over_them() -> None:
    network = wrap(Net())
    own: Any = network.network
    logits, features = network.forward_stages(IMAGES)
    first = functional.conv2d(IMAGES, own.conv1.weight, own.conv1.bias, padding=1)
    second = own.conv2(functional.max_pool2d(first.relu(), 2))
    torch.testing.assert_close(dict(features), {"conv1": first, "conv2": second})
    torch.testing.assert_close(logits, network(IMAGES))
    assert first.min() < 0 > second.min()


def test_a_module_that_is_called_several_times_counts_with_its_last_call() -> None:
    network = wrap(Net(), ["relu", "conv1"])
    assert network.stage_names == ("conv1", "relu")
    features = network.forward_stages(IMAGES)[1]
    torch.testing.assert_close(network.forward_until(IMAGES, "relu"), features["relu"])
    assert features["relu"].shape == (3, 8, 4, 4)


def test_deeper_stages_are_not_computed() -> None:
    network = wrap(Net())
    own: Any = network.network
    own.ran.clear()
    feature = network.forward_until(IMAGES, "conv1")
    assert own.ran == ["conv1"]
    torch.testing.assert_close(feature, network.forward_stages(IMAGES)[1]["conv1"])
    assert [stage.depth for stage in stages(network, 1, 8)] == [pytest.approx(x, abs=0.02) for x in (0.33, 1.0)]


def test_a_copy_has_features_of_its_own_and_state_has_the_users_names() -> None:
    network = wrap(Net())
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.network.conv1.weight.zero_()  # type: ignore[union-attr, operator]
    assert not torch.equal(*(n.forward_stages(IMAGES)[1]["conv1"] for n in (network, other)))
    assert {"conv1.weight", "fc.bias", "unused.bias"} < network.plain_state().keys()
    other.load_plain_state(network.plain_state())
    assert torch.equal(network(IMAGES), other(IMAGES))
    assert network.classifiers == ("fc",)


@pytest.mark.parametrize("answer", ["logits", "object", "mapping"])
def test_logits_may_be_in_an_object(answer: str) -> None:
    network = wrap(Net(answer=answer))
    assert network(IMAGES).shape == network.forward_stages(IMAGES)[0].shape == (3, 10)


class Tokens(nn.Module):
    """A transformer with a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, 8, 2, stride=2)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.blocks = nn.Sequential(*(copy.deepcopy(layer) for _ in range(6)))
        self.head = nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images).flatten(2).mT
        return self.head(self.blocks(torch.cat([self.token.expand(len(x), -1, -1), x], 1))[:, 0])


class LastChannels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = nn.Linear(1, 6), nn.Linear(6, 12)
        self.head = nn.Linear(12, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images.permute(0, 2, 3, 1)).relu()[:, ::2, ::2]
        return self.head(self.deep(x).mean((1, 2)))


def shuffled(num_classes: int = 10) -> nn.Module:
    return torchvision.models.shufflenet_v2_x0_5(num_classes=num_classes)


@pytest.mark.parametrize(
    ("network", "found", "linear"),
    [
        (Tokens, {f"blocks_{k}": (16, 8) for k in (0, 2, 3, 5)}, False),
        (LastChannels, {"stem": (6, 8, 8), "deep": (12, 4, 4)}, True),
        (
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 10)),
            {"1": (9,), "2": (9,)},
            True,
        ),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), {"0": (64,)}, True),
        (
            lambda: nn.Sequential(
                nn.Sequential(
                    nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3), nn.Dropout()
                ),
                *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)),
            ),
            {"0_1": (4, 8, 8), "0": (8, 2, 2)},
            True,
        ),
    ],
    ids=["transformer", "channels last", "fully connected", "linear", "nested"],
)
def test_stages_are_found(network: Any, found: dict[str, tuple[int, ...]], linear: bool) -> None:
    made = wrap(network())
    assert {name: tuple(f.shape[1:]) for name, f in made.forward_stages(IMAGES)[1].items()} == found
    assert (made.linear_classifier() is not None) == linear


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("resnet18", ["layer1", "layer2", "layer3", "layer4"]),
        ("resnet50", ["layer1", "layer2", "layer3", "layer4"]),
        ("shufflenet_v2_x0_5", ["conv1", "stage2", "stage3", "conv5"]),
        ("squeezenet1_1", ["features_1", "features_4", "features_7", "features"]),
        ("vgg11_bn", ["features_6", "features_13", "features_20", "features_27"]),
    ],
)
def test_stages_of_torchvisions_networks(name: str, names: list[str]) -> None:
    make = getattr(torchvision.models, name)
    sizes = {"channels": 3, "image_size": 32}
    network = wrap(make_network(make, name, num_classes=10, **sizes, kwargs=None), **sizes)
    assert list(network.stage_names) == names


def test_what_a_function_accepts_it_gets() -> None:
    seen: dict[str, Any] = {}

    def make(classes: int, img_size: int, *, depth: int = 1, **others: Any) -> nn.Module:
        seen.update(locals())
        return Net(classes)

    make_network(make, "f", **SIZES, kwargs={"depth": 3, "drop": 0.5})
    assert seen.items() >= {"classes": 10, "img_size": 8, "depth": 3, "others": {"drop": 0.5}}.items()
    made: Any = make_network(Net, "Net", num_classes=7, channels=3, image_size=8, kwargs={"width": 5})
    assert made.conv1.weight.shape == (5, 3, 3, 3)
    assert made.fc.out_features == 7


def failing() -> nn.Module:
    raise KeyError("weights")


@pytest.mark.parametrize(
    ("make", "kwargs", "message"),
    [
        (Net, {"widht": 3}, r"takes no argument 'widht'; did you mean 'width'\?"),
        (lambda depth: Net(), None, r"needs an argument 'depth': give it in kwargs, as model\.kwargs\.depth=VALUE"),
        (lambda: 3, None, r"returned a int: it must return a torch\.nn\.Module"),
        (failing, None, r"cannot be built with no arguments \(KeyError: 'weights', test_custom_network\.py line \d+\)"),
        (3, None, "is a int: name a class or function that makes a network"),
        (Net(), None, "is a Net: name a class or function that makes a network"),
        (lambda: Net(7), None, "returned 7 values for an image, and the data has 10 classes"),
        (lambda: Net(answer="list"), None, r"returned a list: it must return logits, or an object with \.logits"),
        (lambda: Net(in_chans=3), None, r"does not accept 1x8x8 images \(RuntimeError: "),
    ],
)
def test_what_is_no_network_is_one_line(make: Any, kwargs: dict[str, Any] | None, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        wrap(make_network(make, "mine:Net", **SIZES, kwargs=kwargs))
    assert "\n" not in str(caught.value)


def test_a_network_that_refuses_two_images_in_training_is_probed() -> None:
    class Picky(Net):
        def forward(self, images: Tensor) -> Any:
            assert not self.training or len(images) > TRIAL
            return super().forward(images)

    assert wrap(Picky()).stage_names == ("conv1", "conv2")


def test_a_network_of_kdschemes_keeps_its_stages_when_it_is_given_the_weights(tmp_path: Path) -> None:
    network = create_model("resnet20", **SIZES)
    network.spec = replace(network.spec, name="given/resnet20-12345678")
    save_weights(network, tmp_path)
    loaded = load_model(tmp_path, network=create_model("resnet20", **SIZES))
    assert loaded.stage_names == network.stage_names
    torch.testing.assert_close(loaded(IMAGES), network.eval()(IMAGES))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["conv3"], r"has no submodule 'conv3'; did you mean 'conv2'\?"),
        (["unused"], "submodule unused of mine:Net is not called: name another"),
        (["conv1", "conv1"], "name a submodule twice"),
    ],
)
def test_stages_that_do_not_exist(names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        wrap(Net(), names)


FILE = """
from torch import nn
def make(num_classes, channels, image_size, hidden=5):
    pixels = channels * image_size ** 2
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, hidden), nn.ReLU(), nn.Linear(hidden, num_classes))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(ALLOWED, "")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_own_nets.py").write_text(FILE)
    return tmp_path


def test_an_export_is_loaded_with_permission_or_with_the_network(here: Path) -> None:
    allow_named(["my_own_nets:make"])
    network = create_model("my_own_nets:make", **SIZES, kwargs={"hidden": 6})
    save_weights(network, "out")
    torch.testing.assert_close(load_model("out")(IMAGES), network(IMAGES))
    import os

    os.environ[ALLOWED] = ""
    with pytest.raises(CodeRefused, match=r"allow it: load_model\('out', allow=\['my_own_nets:make'\]\)$"):
        load_model("out")
    given = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 10))
    loaded = load_model("out", network=given)
    torch.testing.assert_close(loaded(IMAGES), network(IMAGES))
    assert loaded.stage_names == network.stage_names
    torch.testing.assert_close(load_model("out", allow="my_own_nets:make")(IMAGES), network(IMAGES))
    (here / "my_own_nets.py").write_text(FILE + "# changed\n")
    with pytest.raises(UserError, match="has changed since"):
        load_model("out", allow="my_own_nets:make")


@pytest.mark.slow
def test_it_compiles_with_its_features(tmp_path: Path) -> None:
    program = """
import torch
from tests.models.test_custom_network import IMAGES, Net, wrap
network = wrap(Net())
own, network.network.ran = network.forward_stages(IMAGES), []
compiled = torch.compile(network.forward_stages, backend="aot_eager")
for _ in range(2):
    logits, features = compiled(IMAGES)
    torch.testing.assert_close((logits, features), own)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
