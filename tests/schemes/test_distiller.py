"""A scheme in a custom loop: the same loss and gradients as in kdschemes' loop, and what it refuses."""

from __future__ import annotations

import copy
import gc
import re
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kdschemes
from kdschemes.config.load import load_config
from kdschemes.core.terms import Supervise, Transfer
from kdschemes.core.types import Batch, DataSpec, Progress
from kdschemes.errors import UserError
from kdschemes.models import create_model
from kdschemes.schemes import build_scheme
from kdschemes.schemes.distiller import Distiller
from tests import REPOSITORY
from tests.distributed.worlds import close, launch
from tests.schemes import distiller_worker

IMAGES = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(0, 10, (16,), generator=torch.Generator().manual_seed(1))
SIZES = {"images": IMAGES, "num_classes": 10, "total_steps": 6}
EXAMPLES = re.findall(r"^```python\n(.*?)^```", (REPOSITORY / "docs" / "own_loop.md").read_text(), re.M | re.S)


def net(width: int = 4) -> nn.Module:
    torch.manual_seed(width)
    return nn.Sequential(
        *(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(2 * width, 10),
    )


def make(*options: str, **more: Any) -> Distiller:
    offline = {"teacher": net(8)} if "scheme=offline" in options else {}
    scheme: Distiller = kdschemes.distill(*options, **({"student": net()} | offline | SIZES | more))
    return scheme


def step(scheme: Distiller, optimizer: torch.optim.Optimizer, *batch: Any) -> float:
    optimizer.zero_grad()
    loss: Tensor = scheme(*batch)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize(
    "options",
    [
        ["scheme=offline", "losses.feature=at", "losses.relation=rkd"],
        ["scheme=online"],
        ["scheme=self", "scheme.exit_head=linear"],
    ],
    ids=["offline", "online", "self"],
)
def test_loss_and_gradients_are_those_of_a_run(options: list[str]) -> None:
    models = ["model=resnet20", *(["teacher=resnet32"] if "scheme=offline" in options else [])]
    config = load_config([*options, *models], recipes=REPOSITORY)
    reference = build_scheme(config, DataSpec(10, 1, 8)).train()
    batch = Batch(IMAGES, LABELS, torch.arange(16))
    expected = reference(batch, Progress(0, 6, 6))
    expected.total.backward()

    given = build_scheme(config, DataSpec(10, 1, 8))

    def own(name: str) -> Any:
        network: Any = given.nodes[name]
        network = network.network
        return network.network if hasattr(network, "exits") else network

    names = [name for name in given.nodes if name not in ("teacher", "ensemble")]
    networks = [own(name) for name in names]
    teacher = {"teacher": own("teacher")} if "teacher" in given.nodes else {}
    student = networks if len(networks) > 1 else networks[0]
    scheme = kdschemes.distill(*options, student=student, **teacher, **SIZES).train()
    loss = scheme(IMAGES, LABELS)
    loss.backward()
    assert loss.item() == expected.total.item()
    assert {name: value.item() for name, value in scheme.losses.items()} == {
        name: value.item() for name, value in expected.losses.items()
    }
    ours = dict(scheme.scheme.named_parameters())
    for name, parameter in reference.named_parameters():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, ours[name].grad), name


def test_the_students_own_network_is_trained_and_the_teacher_stays_as_it_was() -> None:
    student, teacher = net(), net(8)
    before, taught = copy.deepcopy(student.state_dict()), copy.deepcopy(teacher.state_dict())
    scheme = kdschemes.distill("scheme=offline", student=student, teacher=teacher, **SIZES)
    assert scheme.network() is student
    optimizer = torch.optim.SGD(scheme.parameters(), lr=0.1)
    scheme.follow(optimizer)
    losses = [step(scheme, optimizer, batch) for batch in ((IMAGES, LABELS), [IMAGES, LABELS]) for _ in range(4)]
    assert losses[-1] < losses[0]
    assert scheme.steps == 8
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert [name for name, value in student.named_parameters() if torch.equal(value, before[name])] == []
    assert all(torch.equal(value, taught[name]) for name, value in teacher.state_dict().items())
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert set(scheme.logits) == {"student"}


def test_a_mapping_is_a_batch_and_wrong_ones_are_told() -> None:
    scheme = make("scheme=supervised")
    loss = scheme(IMAGES, LABELS)
    assert torch.equal(scheme({"pixel_values": IMAGES, "labels": LABELS}), loss)
    with pytest.raises(UserError, match="has images, target, but none of labels, label, y"):
        scheme({"images": IMAGES, "target": LABELS})


def test_predictions_are_stored_by_index() -> None:
    scheme = make("scheme=self", "method=pskd", train_labels=LABELS)
    with pytest.raises(UserError, match="pass index"):
        scheme(IMAGES, LABELS)
    optimizer = torch.optim.SGD(scheme.parameters(), lr=0.1)
    scheme.follow(optimizer)
    step(scheme, optimizer, IMAGES, LABELS, torch.arange(16))
    past: Any = scheme.scheme.nodes["past"]
    assert past.known.all()


def test_it_resumes_from_its_state() -> None:
    options = ["scheme=offline", "losses.response.schedule=linear", "losses.response.ramp_epochs=4"]

    def trained(scheme: Distiller, steps: int) -> tuple[list[float], torch.optim.Optimizer]:
        optimizer = torch.optim.SGD(scheme.parameters(), lr=0.1)
        scheme.follow(optimizer)
        return [step(scheme, optimizer, IMAGES, LABELS) for _ in range(steps)], optimizer

    whole, _ = trained(make(*options, steps_per_epoch=1), 4)
    first = make(*options, steps_per_epoch=1)
    begun, _ = trained(first, 2)
    second = make(*options, steps_per_epoch=1)
    second.load_state_dict(first.state_dict())
    assert second.steps == 2
    rest, _ = trained(second, 2)
    assert [*begun, *rest] == whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["optim.lr=1"], "optim.lr=1: data, optimizer and loop are yours"),
        (["scheme=self", "method=ddgsd"], r"needs other views or samples \(view1\)"),
        (["scheme=self", "method=dlb"], r"needs other views or samples \(previous\)"),
        (["scheme=online", "method=switokd"], "optimizer steps that leave a network out"),
        (["scheme=self", "method=ban"], "method=ban trains other networks first"),
        (["scheme=offline"], "needs a teacher: pass teacher=NETWORK"),
        (["scheme=supervised", "losses.feature=at"], "has no effect"),
        (["experiment=kd"], "experiment=kd: data, optimizer and loop are yours"),
        (["lr=0.1"], "lr=0.1: data, optimizer and loop are yours"),
        (["epochs=4"], "epochs=4: data, optimizer and loop are yours"),
        (["scheme=self", "method=pskd"], "pass train_labels, the labels of all"),
    ],
)
def test_what_a_loss_is_not_enough_for_is_refused(options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        kdschemes.distill(*options, student=net(), **SIZES)


def test_short_keys_stand_for_the_keys_of_a_command_line() -> None:
    scheme = kdschemes.distill("scheme=offline", "T=7", "alpha=0.3", student=net(), teacher=net(8), **SIZES)
    (term,) = [term for term in scheme.scheme.terms if isinstance(term, Transfer)]
    assert term.loss.options.temperature == 7
    scheme(IMAGES, LABELS)
    assert scheme.weights[term.name] == pytest.approx(0.3)
    smoothed = kdschemes.distill("scheme=supervised", "label_smoothing=0.2", student=net(), **SIZES)
    (hard,) = [term for term in smoothed.scheme.terms if isinstance(term, Supervise)]
    assert hard.label_smoothing == 0.2


def test_wrong_arguments_are_refused() -> None:
    one = net()
    for more, message in (
        ({"teacher": one, "student": one}, "hold one network twice: pass copies"),
        ({"total_steps": 0}, "total_steps=0: give a number of optimizer steps"),
    ):
        with pytest.raises(UserError, match=message):
            kdschemes.distill("scheme=offline", **({"student": net(), "teacher": net(8)} | SIZES | more))  # type: ignore[operator]
    with pytest.raises(UserError, match="a batch needs labels"):
        make("scheme=offline")(IMAGES)


def test_networks_are_not_kept_and_those_of_kdschemes_stay_what_they_are() -> None:
    networks = [create_model("resnet20", num_classes=10, channels=1, image_size=8) for _ in range(2)]
    specs = [network.spec for network in networks]
    scheme = make("scheme=offline", student=networks[0], teacher=networks[1])
    assert [network.spec for network in networks] == specs
    still_there = weakref.ref(networks[0])
    del scheme, networks
    gc.collect()
    assert still_there() is None


def test_a_network_has_no_hooks_once_its_scheme_is_gone() -> None:
    student = net()
    scheme = kdschemes.distill("scheme=offline", "losses.feature=at", student=student, teacher=net(8), **SIZES)
    scheme(IMAGES, LABELS)
    assert any(module._forward_hooks for module in student.modules())
    del scheme
    gc.collect()
    assert not any(module._forward_hooks for module in student.modules())


def test_steps_in_turn_are_refused() -> None:
    with pytest.raises(UserError, match="several optimizer steps in turn"):
        kdschemes.distill("scheme=online", "scheme.update=sequential", student=[net(4), net(5)], **SIZES)


def test_a_network_of_kdschemes_keeps_its_stages() -> None:
    student = create_model("resnet20", num_classes=10, channels=1, image_size=8)
    scheme = make("scheme=self", "scheme.exits=[layer2]", student=student)
    assert scheme.network() is student
    assert list(scheme.losses) == []
    scheme(IMAGES, LABELS)
    assert "ce/student/exit1" in scheme.losses


def loader() -> torch.utils.data.DataLoader[Any]:
    images, labels = IMAGES.repeat(4, 1, 1, 1), LABELS.repeat(4)
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=16)


class Mappings(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        return {"pixel_values": IMAGES[place % 16], "labels": LABELS[place % 16]}


@pytest.mark.slow
@pytest.mark.parametrize("place", range(4), ids=["bare", "accelerate", "lightning", "transformers"])
@pytest.mark.filterwarnings("default")
def test_the_examples_train_the_student(place: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    example = EXAMPLES[place]
    assert len([line for line in example.splitlines() if line.strip()]) <= 20
    monkeypatch.chdir(tmp_path)
    student, teacher = net(), net(8)
    names: dict[str, Any] = {"student": student, "teacher": teacher, "images": IMAGES}
    names |= {"loader": loader(), "dataset": Mappings()}
    before, weights = student.eval()(IMAGES), copy.deepcopy(teacher.state_dict())
    student.train()
    exec(compile(example, "example", "exec"), names)
    assert not torch.equal(student.eval()(IMAGES), before)
    scheme = names.get("scheme")
    if place in (0, 3):
        assert scheme is not None
        assert scheme.steps == (8 if place == 0 else 16)
    assert all(torch.equal(value, weights[name]) for name, value in teacher.state_dict().items())


@pytest.mark.slow
def test_two_processes_compute_what_one_computes(tmp_path: Path) -> None:
    one = distiller_worker.gradients(0, 1)
    assert len(one) == 6
    for several in launch(2, tmp_path, "tests.schemes.distiller_worker"):
        close(several, one)
