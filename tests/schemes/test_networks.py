"""The initial weights of a scheme's networks, and what a builder refuses."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import interpolate

from kdschemes.config.code import give
from kdschemes.core.frozen import Frozen
from kdschemes.core.placement import frozen_nodes
from kdschemes.core.types import DataSpec
from kdschemes.errors import UserError
from kdschemes.models import AdaptInput, InputSpec, StagedNetwork, create_model, load_model, save_weights
from kdschemes.schemes.networks import adapted_inputs, student_network, teacher_network, unknown_inputs
from tests.schemes.cases import (
    DEFAULTS,
    OFFLINE,
    ONLINE,
    SELF,
    START,
    batch_for,
    build,
    check_refused,
    configure,
    network_of,
    random_batch,
    same_state,
)

BORN_AGAIN = ("self-ban", "self-tfkd_self")
"""Methods whose teacher was trained from the student's usual initial weights, so that the student has others."""


def test_the_student_has_the_same_initial_weights_in_every_scheme_and_each_peer_its_own() -> None:
    names = [name for name in DEFAULTS if not name.startswith("online") and name not in BORN_AGAIN]
    students = [network_of(build(*DEFAULTS[name]), "student") for name in names]
    assert len(students) > 3
    assert all(same_state(students[0], other) for other in students[1:])
    for name in BORN_AGAIN:
        assert not same_state(students[0], network_of(build(*DEFAULTS[name]), "student"))
    peers = build(*ONLINE, "scheme.peers=3")
    for a, b in itertools.combinations(("peer0", "peer1", "peer2"), 2):
        assert not same_state(network_of(peers, a), network_of(peers, b))


def test_teachers_come_from_their_own_seed_or_checkpoint(tmp_path: Path) -> None:
    teacher = network_of(build(*OFFLINE, "seed=1"), "teacher")
    assert same_state(teacher, network_of(build(*OFFLINE, "seed=2"), "teacher"))
    other = network_of(build(*OFFLINE, "teacher.seed=5"), "teacher")
    assert not same_state(teacher, other)
    save_weights(other.float(), tmp_path / "other")
    loaded = build(*OFFLINE, f"teacher.checkpoint={tmp_path / 'other'}")
    assert same_state(other.double(), network_of(loaded, "teacher"))
    again = build(*OFFLINE, f"model.checkpoint={tmp_path / 'other'}")
    assert same_state(other, network_of(again, "student"))
    with pytest.raises(UserError, match="10 classes"):
        build(*OFFLINE, f"teacher.checkpoint={tmp_path / 'other'}", data_spec=DataSpec(7, 1, 8))


def test_a_teacher_is_for_the_classes_of_the_data(tmp_path: Path) -> None:
    names = tuple("0123456789")
    data, other = (DataSpec(10, 1, 8, classes=classes) for classes in (names, (*names[1:], "ten")))
    network = network_of(build(*OFFLINE, data_spec=data), "teacher").float()
    save_weights(network, tmp_path / "same", metadata={"classes": list(names)})
    save_weights(network, tmp_path / "turned", metadata={"classes": list(names[::-1])})
    same, turned = (
        network_of(build(*OFFLINE, f"teacher.checkpoint={tmp_path / name}", data_spec=data), "teacher")
        for name in ("same", "turned")
    )
    assert same_state(same, network.to(next(same.parameters()).dtype))
    assert torch.equal(turned.fc.weight, same.fc.weight.flip(0))
    assert torch.equal(turned.fc.bias, same.fc.bias.flip(0))
    with pytest.raises(UserError, match=r"same is for other classes than the data: '0' only in .*, 'ten' only in the"):
        build(*OFFLINE, f"teacher.checkpoint={tmp_path / 'same'}", data_spec=other)


def test_a_student_with_a_new_classifier(tmp_path: Path) -> None:
    other = create_model("convnet", num_classes=100, channels=3, image_size=8)
    save_weights(other, tmp_path)
    start = [*DEFAULTS["supervised-ce"], "model=convnet", f"model.checkpoint={tmp_path}"]
    fresh = network_of(build(*start[:-1]), "student")
    network = network_of(build(*start, "model.head=new"), "student")
    assert torch.equal(network.get_parameter("fc.weight"), fresh.get_parameter("fc.weight"))
    assert torch.equal(network.get_parameter("stage4.conv2.weight").float(), other.get_parameter("stage4.conv2.weight"))
    assert network.notes == (
        f"{tmp_path}: new classifier for 10 classes; stage1.conv1.weight is summed over RGB, because the data is gray",
    )
    check_refused(start, "model.head=new")
    with pytest.raises(UserError, match=r"model.head=new replaces the classifier of model.checkpoint"):
        build(*start[:-1], "model.head=new")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([*SELF, "scheme.exits=[layer3]"], "layer3"),
        ([*SELF, "scheme.exits=[stage1]"], "resnet20 'stage1'"),
        ([*OFFLINE, "teacher.checkpoint=/nowhere"], "/nowhere"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(overrides: list[str], message: str) -> None:
    check_refused(overrides, message)


COLOR = DataSpec(7, 3, 32, torch.arange(60) % 7, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
COLORED = "data=cifar10"
OWN = ["mean=[0.5,0.5,0.5]", "std=[0.5,0.25,0.5]", "image_size=48"]


def options(group: str) -> list[str]:
    return [f"{group}.{option}" for option in OWN]


def by_hand(images: torch.Tensor) -> torch.Tensor:
    """Return the images of `COLOR` as a network with the options `OWN` must see them."""
    shape = (1, 3, 1, 1)
    mean, std, own = (
        torch.tensor(v, dtype=images.dtype).view(shape) for v in (COLOR.mean, COLOR.std, (0.5, 0.25, 0.5))
    )
    resized = interpolate(images * std + mean, (48, 48), mode="bilinear", antialias=True)
    return (resized - 0.5) / own


def plain(network: StagedNetwork) -> StagedNetwork:
    """Return the network without its adaptation."""
    network.accept(network.spec.input)
    return network.eval()


@torch.no_grad()
@pytest.mark.parametrize(
    ("overrides", "heads"),
    [
        ([*OFFLINE, *options("teacher")], {"teacher": True, "student": False}),
        ([*OFFLINE, *options("model")], {"teacher": False, "student": True}),
        (
            ["scheme=offline", "method=partial_teacher", "model=resnet20", "teacher=resnet20", *options("teacher")],
            {"teacher": True},
        ),
        ([*ONLINE, *options("model")], {"peer0": True, "peer1": True}),
        ([*ONLINE, "scheme.topology=shared_trunk", *options("model")], {"peer0": True, "peer1": True}),
        ([*SELF, "train.ema=0.9", *options("model")], {"student": True, "student/ema": True}),
    ],
)
def test_a_network_with_its_own_normalization_and_size_sees_what_it_needs(
    overrides: list[str], heads: dict[str, bool]
) -> None:
    scheme = build(*overrides, COLORED, data_spec=COLOR).eval()
    batch = random_batch(COLOR)
    outputs = scheme.predict(batch, heads)
    for head, own in heads.items():
        network = scheme.node_of(head).inference_network(head)
        assert network is not None
        assert network.spec.input == (InputSpec(48, (0.5,) * 3, (0.5, 0.25, 0.5)) if own else COLOR.input)
        expected = plain(network)(by_hand(batch.images) if own else batch.images)
        torch.testing.assert_close(outputs[head].logits, expected, rtol=0, atol=1e-9)


def test_a_step_of_training_passes_through_the_adaptation() -> None:
    scheme = build(*OFFLINE, *options("model"), *options("teacher"), COLORED, data_spec=COLOR)
    batch = batch_for(scheme, COLOR)
    total = scheme(batch, START).total
    total.backward()
    for head in ("teacher", "student"):
        plain(network_of(scheme, head))
    scheme.train()
    other = scheme(replace(batch, images=by_hand(batch.images)), START).total
    torch.testing.assert_close(total, other, rtol=1e-9, atol=0)


def described(folder: Path, name: str, look: InputSpec) -> Path:
    assert look.image_size is not None
    network = create_model(name, num_classes=7, channels=3, image_size=look.image_size)
    network.spec = replace(network.spec, mean=look.mean, std=look.std)
    save_weights(network, folder)
    return folder


def test_whose_images_a_network_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of its options, else of its checkpoint, else of timm's pretrained weights, else of the data."""
    import timm
    from timm.models import _registry as registry

    torch.save(timm.create_model("test_vit", num_classes=1000).state_dict(), tmp_path / "published.pth")
    tag = registry._model_pretrained_cfgs["test_vit.r160_in1k"]
    local = type(tag)(**{**tag.__dict__, "file": str(tmp_path / "published.pth"), "hf_hub_id": None})
    monkeypatch.setitem(registry._model_pretrained_cfgs, "test_vit.r160_in1k", local)
    look = InputSpec(48, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    there = described(tmp_path / "there", "timm/test_vit", look)
    half = InputSpec(160, (0.5,) * 3, (0.5,) * 3)

    name = "timm/test_vit.r160_in1k"

    def seen(group: str, *overrides: str) -> InputSpec:
        words = [f"{group}={name}", *(f"{group}.{option}" for option in overrides)]
        config = configure("scheme=offline", *words, COLORED)
        network = student_network(config, COLOR, "student") if group == "model" else teacher_network(config, COLOR, 0)
        assert isinstance(network.adapt_input, AdaptInput) == (network.spec.input != COLOR.input)
        return network.spec.input

    for group in ("model", "teacher"):
        assert seen(group) == COLOR.input
        assert seen(group, "pretrained=true") == half
        assert seen(group, f"checkpoint={there}") == look
        assert seen(group, "pretrained=true", "image_size=32") == replace(half, image_size=32)
        assert seen(group, f"checkpoint={there}", "mean=[0.9,0.9,0.9]") == replace(look, mean=(0.9,) * 3)


def test_a_network_that_is_passed_sees_what_it_was_trained_on(tmp_path: Path) -> None:
    look = InputSpec(48, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    trained = load_model(described(tmp_path, "resnet20", look))
    fresh = create_model("resnet20", num_classes=7, channels=3, image_size=48)
    for network, seen in ((trained, look), (fresh, COLOR.input)):
        name = give(network, "resnet20", "12345678")
        config = configure("scheme=offline", f"teacher={name}", "teacher.pretrained=true", COLORED)
        assert teacher_network(config, COLOR, 0).spec.input == seen
    other = give(create_model("resnet20", num_classes=9, channels=3, image_size=48), "resnet20", "12345678")
    with pytest.raises(UserError, match=r"given/resnet20-12345678 has 9 class\(es\), but the data has 7"):
        teacher_network(configure("scheme=offline", f"teacher={other}", "teacher.pretrained=true", COLORED), COLOR, 0)


def test_teachers_of_a_pack_with_other_images_do_not_share_a_forward_pass() -> None:
    def teacher(*overrides: str) -> Frozen:
        (node,) = frozen_nodes(build(*OFFLINE, COLORED, *overrides, data_spec=COLOR))
        return node

    assert teacher().same_network_as(teacher())
    assert teacher(*options("teacher")).same_network_as(teacher(*options("teacher")))
    assert not teacher().same_network_as(teacher("teacher.mean=[0.5,0.5,0.5]"))
    assert not teacher("teacher.image_size=40").same_network_as(teacher("teacher.image_size=48"))


def test_the_log_says_where_a_network_sees_other_images(tmp_path: Path) -> None:
    look = InputSpec(48, (0.5,) * 3, COLOR.std)
    there = described(tmp_path / "there", "resnet20", look)
    overrides = [*ONLINE, "scheme.peers=3", f"model.checkpoint=[{there},{there},{there / 'model.safetensors'}]"]
    assert adapted_inputs(build(*overrides, COLORED, data_spec=COLOR)) == [
        "peer0, peer1, peer2: images are adapted to model.mean=[0.5,0.5,0.5] (data: [0.485,0.456,0.406]), "
        "model.image_size=48 (data: 32)"
    ]
    assert adapted_inputs(build(*OFFLINE, data_spec=COLOR)) == []
    (line,) = adapted_inputs(build(*OFFLINE, f"teacher.checkpoint={there}", "teacher.image_size=32", data_spec=COLOR))
    assert line == "teacher: images are adapted to teacher.mean=[0.5,0.5,0.5] (data: [0.485,0.456,0.406])"


def test_the_log_says_which_checkpoint_of_a_timm_model_does_not_say_what_it_was_trained_on(tmp_path: Path) -> None:
    bare = described(tmp_path / "there", "timm/test_vit", InputSpec(32)) / "model.safetensors"
    bare = bare.rename(tmp_path / "bare.safetensors")
    words = ["scheme=offline", "model=resnet20", "teacher=timm/test_vit", f"teacher.checkpoint={bare}", COLORED]
    (line,) = unknown_inputs(configure(*words), COLOR)
    assert line.startswith(f"{bare} does not say how its images were normalized: taken as the data's, by mean [0.485,")
    assert line.endswith("timm/test_vit: teacher.mean=[0.5,0.5,0.5] teacher.std=[0.5,0.5,0.5]")
    assert unknown_inputs(configure(*words, "teacher.mean=[0.1,0.1,0.1]"), COLOR) == []
    assert unknown_inputs(configure(*words), replace(COLOR, mean=(0.5,) * 3)) == []
