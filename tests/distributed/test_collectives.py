"""Two and three real processes (gloo, DDP through Accelerate) compute what one computes on the same global batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from kdschemes.core.frozen import Frozen
from kdschemes.core.types import DataSpec
from kdschemes.distributed.batch_norm import GlooSyncBatchNorm, synchronize_batch_norm
from kdschemes.distributed.collectives import (
    any_process,
    broadcast_from_main,
    gather,
    gather_rows,
    share,
    sum_over_processes,
)
from kdschemes.errors import UserError
from tests.distributed.worker import CASES, NORMS, SHAPES, run_case, run_gather, run_norm
from tests.distributed.worlds import Results, close, launch
from tests.schemes.cases import DEFAULTS, base, build
from tests.schemes.table import VARIANTS

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


FEW = {
    2: [
        *("offline-kd", "online-dml", "self-byot", "even", "relation-rkd", "relation-crd", "accumulated-views"),
        *("norm-of-the-batch", "held-out-mix", "accumulated-past", "mixup", "several-labels"),
    ],
    3: ["accumulated-online", "mixup"],
}
MORE = {
    2: [name for name in CASES if name not in FEW[2]],
    3: ["accumulated-in-turn", "linear-mix", "held-out-mix", "accumulated-self", "accumulated-past"],
}
THREE = pytest.param(3, marks=pytest.mark.exhaustive)
Launched = Callable[..., Results]


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """What each process computed, by the number of processes and a case: those of `FEW` by default."""

    @cache
    def run(world: int, more: bool) -> Results:
        names = MORE[world] if more else FEW[world]
        return launch(world, tmp_path_factory.mktemp(f"world{world}"), "tests.distributed.worker", *names)

    return lambda world, name=None: run(world, name in MORE[world])


@cache
def alone(name: str) -> dict[str, Any]:
    return run_case(CASES[name], None)


WORLDS = [
    pytest.param(world, name, marks=[pytest.mark.exhaustive] * (world == 3)) for world in FEW for name in FEW[world]
]
WORLDS += [pytest.param(world, name, marks=pytest.mark.exhaustive) for world in MORE for name in MORE[world]]


@pytest.mark.parametrize(("world", "name"), WORLDS)
def test_gradients_of_every_parameter_equal_those_of_one_process(world: int, name: str, launched: Launched) -> None:
    expected = alone(name)["gradients"]
    assert len(expected) == CASES[name].steps
    for results in launched(world, name):
        for several, one in zip(results["cases"][name]["gradients"], expected, strict=True):
            close(several, one)


@pytest.mark.parametrize(("world", "name"), WORLDS)
def test_weights_statistics_and_averages_equal_those_of_one_process(world: int, name: str, launched: Launched) -> None:
    for results in launched(world, name):
        close(results["cases"][name]["state"], alone(name)["state"])


@pytest.mark.parametrize(("world", "name"), WORLDS)
def test_reported_losses_are_the_mean_over_processes(world: int, name: str, launched: Launched) -> None:
    for step, expected in enumerate(alone(name)["losses"]):
        ranks = [results["cases"][name]["losses"][step] for results in launched(world, name)]
        means = {term: sum(values[term] for values in ranks) / world for term in expected}
        assert all(values.keys() == expected.keys() for values in ranks)
        assert means == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("world", "name"), WORLDS)
def test_metrics_of_shared_evaluation_equal_those_of_one_process(world: int, name: str, launched: Launched) -> None:
    expected = alone(name)["metrics"]
    for results in launched(world, name):
        metrics = results["cases"][name]["metrics"]
        assert metrics.keys() == expected.keys()
        for head in expected:
            assert metrics[head] == pytest.approx(expected[head], rel=1e-7), head


@pytest.mark.parametrize("world", [2, THREE])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", NORMS)
def test_batch_norm_over_processes_is_batch_norm_of_the_whole(
    options: str, shape: str, world: int, launched: Launched
) -> None:
    one = run_norm(NORMS[options], SHAPES[shape])
    ranks = [results["norms"][f"{options}-{shape}"] for results in launched(world)]
    for key in ("output", "gradient"):
        torch.testing.assert_close(torch.cat([several[key] for several in ranks]), one[key], rtol=1e-9, atol=1e-12)
    for name, gradient in one["own"].items():
        torch.testing.assert_close(sum(several["own"][name] for several in ranks), gradient, rtol=1e-9, atol=1e-12)
    for several in ranks:
        close(several["state"], one["state"])
        torch.testing.assert_close(several["evaluated"], one["evaluated"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("world", [2, THREE])
def test_gather_joins_uneven_rows_and_its_gradient_is_that_of_one_loss(world: int, launched: Launched) -> None:
    for total in (world, 7):
        one = run_gather(total)
        parts = [results["gather"][str(total)] for results in launched(world)]
        assert all(torch.equal(several["rows"], one["rows"]) for several in parts)
        together = torch.cat([several["gradient"] for several in parts])
        torch.testing.assert_close(together, one["gradient"], rtol=1e-12, atol=1e-12)


def test_one_process_needs_no_exchange() -> None:
    rows = torch.randn(6, 3, requires_grad=True)
    assert gather(rows, None) is rows
    value = torch.tensor([1.0, 2.0])
    assert torch.equal(sum_over_processes(value), value)
    assert torch.equal(gather_rows(value), value[None])
    assert any_process(True, CPU)
    assert not any_process(False, CPU)
    assert broadcast_from_main({"a": 1}) == {"a": 1}


@pytest.mark.parametrize(("total", "parts"), [(13, 2), (13, 3), (7, 7), (2, 3), (0, 2), (12, 4)])
def test_shares_are_those_of_the_loader(total: int, parts: int) -> None:
    bounds = [share(total, parts, part) for part in range(parts)]
    assert [list(range(*b)) for b in bounds] == [x.tolist() for x in torch.arange(total).tensor_split(parts)]


@pytest.mark.parametrize("name", [*DEFAULTS, "online-dml-shared-trunk", "self-byot-ema"])
def test_every_batch_norm_of_a_scheme_is_synchronized_but_the_teachers(name: str) -> None:
    scheme = build(*VARIANTS[name])
    parameters, buffers = dict(scheme.named_parameters()), dict(scheme.named_buffers())
    training = {key: module.training for key, module in scheme.named_modules()}
    kinds = {key for key, module in scheme.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)}
    synchronize_batch_norm(scheme, CPU)
    assert kinds
    assert {key for key, module in scheme.named_modules() if isinstance(module, GlooSyncBatchNorm)} == kinds
    assert {key: module.training for key, module in scheme.named_modules()} == training
    assert all(p is parameters[key] for key, p in scheme.named_parameters())
    assert all(b is buffers[key] for key, b in scheme.named_buffers())
    assert scheme.state_dict().keys() == {*parameters, *buffers}
    teachers = [node.network for node in scheme.nodes.values() if isinstance(node, Frozen)]
    assert bool(teachers) or not name.startswith(("offline-kd", "offline-takd", "offline-camkd", "self-ban"))
    assert not any(isinstance(module, GlooSyncBatchNorm) for teacher in teachers for module in teacher.modules())


def test_a_network_with_fused_batch_norm_is_refused_on_the_cpu() -> None:
    scheme = build(*base("supervised", "ce", "timm/mobilenetv3_small_050"), data_spec=DataSpec(10, 3, 32))
    with pytest.raises(UserError, match=r"BatchNormAct2d cannot be synchronized on CPU.*train.sync_bn=false"):
        synchronize_batch_norm(scheme, CPU)


def test_a_network_without_batch_norm_is_left_alone() -> None:
    scheme = build(*base("supervised", "ce", "timm/test_vit"), data_spec=DataSpec(10, 3, 32))
    modules = dict(scheme.named_modules())
    assert synchronize_batch_norm(scheme, CPU) is scheme
    assert dict(scheme.named_modules()) == modules
