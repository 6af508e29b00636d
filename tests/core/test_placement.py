"""A frozen teacher in bfloat16 or in the memory of the CPU: its outputs, what still works, what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from kdschemes.config import Teacher
from kdschemes.core.distillation import Distillation
from kdschemes.core.frozen import Frozen
from kdschemes.core.placement import frozen_nodes, place_frozen
from kdschemes.core.types import Batch
from kdschemes.errors import UserError
from kdschemes.models import count_macs, count_parameters, create_model
from kdschemes.schemes import build_scheme
from kdschemes.training.checks import check_placement
from tests.processes import run
from tests.schemes.cases import DATA_SPEC, OFFLINE, START, build, configure, random_batch, same_state, state_of, trained
from tests.schemes.table import VARIANTS
from tests.training.test_loop import SMALL, one_line

CPU = torch.device("cpu")
SCHEMES = ["offline-kd-two-teachers-hint", "offline-camkd", "offline-dpkd"]
SIZES = {"train": 60, "val": 20, "test": 20}


def placed(name: str, **options: str) -> Distillation:
    scheme = build(*VARIANTS[name], dtype=torch.float32)
    place_frozen(scheme, Teacher(**options), CPU)  # type: ignore[arg-type]
    return scheme


def gradients(scheme: Distillation) -> list[torch.Tensor]:
    scheme.train()(random_batch(dtype=torch.float32), START).total.backward()
    found = [p.grad for p in trained(scheme)]
    assert all(g is not None for g in found)
    return [g for g in found if g is not None]


@pytest.mark.parametrize("name", SCHEMES)
def test_an_offloaded_teacher_teaches_to_the_last_bit_what_one_on_the_device_does(name: str) -> None:
    assert all(map(torch.equal, gradients(placed(name, placement="offload")), gradients(placed(name))))


@pytest.mark.parametrize("name", SCHEMES)
def test_a_teacher_in_bfloat16_returns_float32_near_its_float32_outputs(name: str) -> None:
    exact, rounded = placed(name).eval(), placed(name, precision="bf16").eval()
    batch = random_batch(dtype=torch.float32)
    for node in frozen_nodes(rounded):
        (head,) = node.provides
        ours, theirs = (scheme.predict(batch, [head])[head] for scheme in (rounded, exact))
        assert {f.dtype for f in (ours.logits, *ours.features.values())} == {torch.float32}
        spread = (theirs.logits - theirs.logits.mean(1, keepdim=True)).norm()
        assert 0 < (ours.logits - theirs.logits).norm() < 0.1 * spread
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients(rounded))


def test_what_is_rounded_and_what_is_not() -> None:
    (node,) = frozen_nodes(placed("offline-kd", precision="bf16"))
    network, exact = node.network, frozen_nodes(placed("offline-kd"))[0].network.state_dict()
    kept = {f"{name}." for name, part in network.named_modules() if isinstance(part, nn.BatchNorm2d)} | {"fc."}
    for name, value in network.state_dict().items():
        if not value.is_floating_point() or any(name.startswith(prefix) for prefix in kept):
            assert torch.equal(value, exact[name])
        else:
            assert torch.equal(value, exact[name].bfloat16())


def test_a_rounded_and_offloaded_teacher_stays_where_and_what_it_is() -> None:
    scheme = placed("offline-kd", precision="bf16", placement="offload").train()
    (node,) = frozen_nodes(scheme)
    before = state_of(node.network)
    gradients(scheme)
    scheme.to(memory_format=torch.channels_last).double()
    assert same_state(
        {k: v for k, v in node.network.state_dict().items() if not k.startswith("fc.")},
        {k: v for k, v in before.items() if not k.startswith("fc.")},
    )
    assert node.network.get_parameter("fc.weight").dtype == torch.float64
    assert not any(part.training for part in node.network.modules())
    assert not any("teacher" in name for name in scheme.state_dict())


@pytest.mark.parametrize("name", ["resnet20", "timm/test_vit", "timm/convnext_atto"])
def test_an_offloaded_layer_is_on_the_device_while_it_is_called_and_only_then(name: str) -> None:
    """With tensors that know their device and hold nothing, as no GPU is needed for."""
    network = create_model(name, num_classes=10, channels=3, image_size=32)
    node = Frozen("teacher", network)
    scheme = Distillation({"teacher": node}, [], ["teacher"])
    place_frozen(scheme, Teacher(placement="offload"), CPU)
    away = sum(p.numel() for layer in node.not_moved for p in layer.parameters())
    assert away > 0.95 * sum(p.numel() for p in network.parameters())
    with FakeTensorMode():
        for part in network.modules():
            device = "cpu" if part in node.not_moved else "cuda"
            for tensors in (part._parameters, part._buffers):
                for key, value in tensors.items():
                    if value is not None:
                        tensors[key] = torch.empty(value.shape, dtype=value.dtype, device=device)  # type: ignore[assignment]
        labels = torch.zeros(2, dtype=torch.long, device="cuda")
        output = node(Batch(torch.empty(2, 3, 32, 32, device="cuda"), labels, labels), {})["teacher"]
    assert {f.device.type for f in (output.logits, *output.features.values())} == {"cuda"}
    for layer in node.not_moved:
        assert {t.device.type for t in (*layer._parameters.values(), *layer._buffers.values()) if t is not None} == {
            "cpu"
        }


def test_a_method_that_trains_its_teacher_refuses_to_keep_it_frozen() -> None:
    for option in ("precision=bf16", "placement=offload", "placement=sharded"):
        config = configure("scheme=offline", "method=partial_teacher", f"teacher.{option}")
        with pytest.raises(
            UserError, match=rf"teacher.{option} applies to frozen teachers, .*method=partial_teacher has none"
        ):
            check_placement(config, build_scheme(config, DATA_SPEC), SIZES, 2)
    config = configure(*OFFLINE, "teacher.precision=bf16", "teacher.placement=offload")
    check_placement(config, build_scheme(config, DATA_SPEC), SIZES, 1)


def test_a_split_needs_a_sample_for_each_process() -> None:
    config = configure(*OFFLINE, "teacher.placement=sharded")
    with pytest.raises(UserError, match="a sample of val for each process: 1 for 2 processes"):
        check_placement(config, build_scheme(config, DATA_SPEC), SIZES | {"val": 1}, 2)


@pytest.mark.slow
def test_a_whole_run_with_a_teacher_in_bfloat16_on_the_cpu(tmp_path: Path) -> None:
    options = ["teacher.precision=bf16", "teacher.placement=offload", "optim.lr=0.01", "losses.feature=hint"]
    ended = run(["scheme=offline", "teacher.name=resnet20", "teacher.epochs=2", *SMALL, *options], tmp_path)
    assert (ended.code, ended.err) == (0, "")
    (folder,) = (tmp_path / "runs").glob("offline*")
    results = json.loads((folder / "results.json").read_text())
    teacher = create_model("resnet20", num_classes=10, channels=1, image_size=8)
    macs = count_macs(teacher, 1, 8)
    cost = results["cost"]["teacher"]
    assert (cost["parameters"], cost["macs"]) == (count_parameters(teacher), macs)
    assert cost["latency_ms"] > 0
    assert results["heads"]["teacher"]["last"]["test"]["agreement"] == 100.0
    assert math.isfinite(results["heads"]["student"]["last"]["test"]["kl"])
    assert "teacher on the validation split" in ended.out


def test_placement_and_compile_exclude_each_other(tmp_path: Path) -> None:
    ended = run([*OFFLINE, "teacher.placement=offload", "train.compile=true"], tmp_path)
    assert ended.code == 2
    assert "teacher.placement=offload and train.compile=true exclude each other" in one_line(ended)
