"""Every loss that options can name: it has a module and a test file, trains, gathers, and is the same in any layout."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdschemes.core.types import Output
from kdschemes.losses.build import MODULES, build_loss
from tests.losses.inputs import case
from tests.losses.stubs import (
    BIG,
    SMALL,
    TOKENS,
    N,
    Shapes,
    StubNetwork,
    build,
    data_spec,
    gathered,
    output,
    side,
    value_of,
)
from tests.losses.table import DEFAULTS, FILES, OPTIONS, file_of, flags, kind_of

every = pytest.mark.parametrize("options", OPTIONS, ids=str)


def spans_the_batch(options: Any) -> bool:
    made = MODULES[type(options)]
    return bool(made.keywords.get("gather")) if isinstance(made, partial) else made.needs_global_batch  # type: ignore[attr-defined]


def test_every_option_of_the_tables_has_a_module() -> None:
    assert {options for _, options in DEFAULTS.values()} == set(MODULES)


@pytest.mark.parametrize("name", DEFAULTS)
def test_every_loss_has_a_test_file(name: str) -> None:
    file = file_of(DEFAULTS[name][1])
    assert file in FILES, f"{name} is tested in {file.replace('.', '/')}.py"


@every
def test_the_student_and_every_projection_learn(options: Any) -> None:
    shapes: dict[str, Shapes] = {"small": SMALL, "big": BIG, "tokens": TOKENS}
    for student, teacher in (("small", "big"), ("big", "small"), ("tokens", "big"), ("small", "tokens")):
        if teacher != "tokens" or flags(options).teacher_tokens:
            with case(student, teacher):
                check_they_learn(options, shapes[student], shapes[teacher])


def check_they_learn(options: Any, student: Shapes, teacher: Shapes) -> None:
    loss = build(options, student, teacher)
    ours, theirs = output(student, 0), output(teacher, 1)
    state = {name: x.clone() for name, x in loss.state_dict().items()}
    value = value_of(loss, ours, theirs)
    assert value > 0
    value.backward()
    for p in loss.parameters():
        assert p.grad is not None
        assert p.grad.isfinite().all()
        assert p.grad.any()
    for given in (ours, theirs) if flags(options).teacher_gradient else (ours,):
        tensors = given.logits, *given.features.values(), *given.preactivations.values()
        assert any(x.grad is not None and x.grad.any() for x in tensors), "the loss detached this side"
    loss.load_state_dict(state)
    assert value_of(loss, ours.detach(), theirs.detach()).item() == value.item()


@every
def test_modules_hold_no_part_of_the_networks(options: Any) -> None:
    ours, theirs = side(SMALL), side(BIG, frozen=True)
    loss = build_loss(options, student=ours, teacher=theirs, data_spec=data_spec())
    assert isinstance(ours.network, StubNetwork)
    assert isinstance(theirs.network, StubNetwork)
    held = {id(m) for m in loss.modules()}
    assert not held & {id(m) for network in (ours.network, theirs.network) for m in network.modules()}
    value_of(loss, output(SMALL, 0), output(BIG, 50)).backward()
    assert all(p.grad is None for p in theirs.network.parameters())
    assert ours.network.fc is not None
    assert (ours.network.fc.weight.grad is not None) == flags(options).student_classifier


@pytest.mark.parametrize("options", [o for o in OPTIONS if kind_of(o) == "response" or flags(o).vectors], ids=str)
@pytest.mark.parametrize("teacher", [{"other": (4,)}, TOKENS], ids=["vector", "tokens"])
def test_stages_that_are_vectors(options: Any, teacher: Shapes) -> None:
    loss = build(options, {"only": (6,)}, teacher)
    ours = output({"only": (6,)}, 2)
    value_of(loss, ours, output(teacher, 3)).backward()
    assert any(x.grad is not None and x.grad.any() for x in (ours.logits, ours.features["only"]))
    if kind_of(options) == "response":
        assert all(p.grad is not None and p.grad.any() for p in loss.parameters())


@every
def test_only_losses_that_span_the_batch_gather(options: Any) -> None:
    loss, sent = build(options), list[Tensor]()

    def gather(x: Tensor) -> Tensor:
        sent.append(x)
        return x

    value_of(loss, output(SMALL, 0), output(BIG, 1), gather)
    assert bool(sent) == loss.needs_global_batch == spans_the_batch(options)
    assert all(len(x) == N for x in sent)


@pytest.mark.parametrize("options", [o for o in OPTIONS if spans_the_batch(o)], ids=str)
def test_processes_compute_one_value_together(options: Any) -> None:
    loss, ours, theirs = build(options), output(SMALL, 6, n=6), output(BIG, 7, n=6)
    if any(isinstance(m, nn.BatchNorm1d) for m in loss.modules()):
        loss.eval()  # several processes would train with synchronized batch norm
    whole = value_of(copy.deepcopy(loss), ours, theirs)
    value = gathered(loss, ours, theirs, slice(0, 2), slice(2, 6))
    torch.testing.assert_close(value, whole)
    leaves = ours.logits, *ours.features.values()
    mine, all_of_it = (torch.autograd.grad(x, leaves, allow_unused=True) for x in (value, whole))
    for half, full in zip(mine, all_of_it, strict=True):
        assert (half is None) == (full is None)
        if half is not None and full is not None:
            torch.testing.assert_close(half[:2], full[:2])


@pytest.mark.parametrize("options", [o for o in OPTIONS if flags(o).single_sample], ids=str)
def test_batch_of_one(options: Any) -> None:
    loss = build(options)
    value = value_of(loss, output(SMALL, 10, n=1), output(BIG, 11, n=1))
    value.backward()
    assert value.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loss.parameters())


@every
def test_maps_of_any_layout(options: Any) -> None:
    loss, ours, theirs = build(options), output(SMALL, 16).detach(), output(BIG, 17).detach()

    def last(given: Output) -> Output:
        form = torch.channels_last
        maps = (given.features, given.preactivations)
        both = ({name: f.contiguous(memory_format=form) for name, f in x.items()} for x in maps)
        return Output(given.logits, *both)

    value = value_of(copy.deepcopy(loss), ours, theirs)
    torch.testing.assert_close(value_of(copy.deepcopy(loss), last(ours), last(theirs)), value)
    torch.testing.assert_close(value_of(loss, last(ours), theirs), value)


@every
def test_autocast(options: Any) -> None:
    loss, ours, theirs = build(options), output(SMALL, 16), output(BIG, 17)
    plain = value_of(copy.deepcopy(loss), ours, theirs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = value_of(loss, ours, theirs)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(plain.item(), rel=1e-2)


def broken(given: Output) -> Output:
    """The output with NaN in one number of a sample, in its logits, features and maps before the ReLU."""

    def spoil(x: Tensor) -> Tensor:
        x = x.detach().clone()
        x[1].view(-1)[0] = torch.nan
        return x

    features, before = ({k: spoil(x) for k, x in maps.items()} for maps in (given.features, given.preactivations))
    return Output(spoil(given.logits), features, before)


@every
def test_nan_comes_out_as_nan(options: Any) -> None:
    """The check of each step then names the term; a finite value would hide it."""
    ours, theirs = output(SMALL, 0), output(BIG, 1)
    assert value_of(build(options), broken(ours), theirs).isnan()
    if flags(options).reads_teacher:
        assert value_of(build(options), ours, broken(theirs)).isnan()
