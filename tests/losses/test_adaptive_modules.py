"""Modules of the adaptive logit losses and the logit correlations: values, parameters, gathering, errors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdschemes.config.losses import relation as relation_config
from kdschemes.config.losses import response as config
from kdschemes.core.loss import Endpoint, Loss
from kdschemes.core.types import Batch, DataSpec, Output, Progress
from kdschemes.errors import UserError
from kdschemes.losses.build import build_loss
from kdschemes.losses.logit_correlation import batch_correlation, class_correlation
from kdschemes.losses.response.ctkd import CTKD, ctkd
from kdschemes.losses.response.kd import kd
from kdschemes.losses.response.mlkd import mlkd
from kdschemes.losses.response.srd import srd
from kdschemes.losses.response.ttm import ttm
from kdschemes.losses.response.uskd import USKD
from kdschemes.losses.response.wttm import wttm

SMALL = {"block1": (4, 8, 8), "block2": (6, 4, 4), "block3": (8, 4, 4)}
BIG = {"layer1": (8, 8, 8), "layer2": (6, 4, 4), "layer3": (12, 2, 4)}
TOKENS = {"a": (16, 6), "b": (16, 9)}
VECTOR = {"only": (5,)}
CLASSES = 7
PAIRWISE = [
    config.MLKD(),
    config.MLKD(masks="select"),
    config.USKD(mu=0.3),
    relation_config.BatchCorrelation(),
    relation_config.ClassCorrelation(),
]
ALL = [*PAIRWISE, config.TTM(), config.WTTM(), config.CTKD(), config.SRD(), config.SRD(stages="all")]


def output(shapes: Mapping[str, tuple[int, ...]], seed: int, n: int = 6, classes: int = CLASSES) -> Output:
    generator = torch.Generator().manual_seed(seed)
    features = {name: torch.randn(n, *shape, generator=generator).requires_grad_() for name, shape in shapes.items()}
    return Output((2.0 * torch.randn(n, classes, generator=generator)).requires_grad_(), features)


def batch(n: int = 6) -> Batch:
    return Batch(torch.zeros(n, 3, 8, 8), torch.arange(n) % 3, torch.arange(n))


def build(options: Any, student: Any = SMALL, teacher: Any = BIG, classes: int = CLASSES) -> Loss[Any]:
    torch.manual_seed(0)
    return build_loss(options, student=Endpoint(student), teacher=Endpoint(teacher), data_spec=DataSpec(classes, 3, 8))


def same(x: Tensor) -> Tensor:
    return x


def part(whole: Output, rows: slice) -> Output:
    return Output(whole.logits[rows], {name: f[rows] for name, f in whole.features.items()})


def test_values_are_those_of_the_functions() -> None:
    s, t = output(SMALL, 0), output(BIG, 1)
    z, v = s.logits, t.logits
    expected = {
        config.TTM(temperature=3.0): ttm(z, v, temperature=3.0),
        config.WTTM(temperature=3.0): wttm(z, v, temperature=3.0),
        config.CTKD(start=2.0, span=4.0, initial=0.0): kd(z, v, temperature=4.0),
        relation_config.BatchCorrelation(temperature=2.0): batch_correlation(z, v, temperature=2.0),
        relation_config.ClassCorrelation(temperature=2.0): class_correlation(z, v, temperature=2.0),
    }
    for options, value in expected.items():
        assert build(options)(s, t, batch(), same).item() == pytest.approx(value.item(), rel=1e-6)
    levels = {"instance": 0.5, "batch": 2.0, "classes": 3.0}
    for masks in ("share", "select", "none"):
        loss = build(config.MLKD(temperatures=[1.0, 3.0], masks=masks, **levels))  # type: ignore[arg-type]
        truth = mlkd(z, v, temperatures=[1.0, 3.0], masks=masks, **levels)
        assert loss(s, t, batch(), same) == truth


@pytest.mark.parametrize("options", ALL, ids=lambda o: o.name)
@pytest.mark.parametrize(("student", "teacher"), [(SMALL, BIG), (TOKENS, BIG), (SMALL, TOKENS), (VECTOR, TOKENS)])
def test_everything_learns(options: Any, student: Any, teacher: Any) -> None:
    loss = build(options, student, teacher)
    s, t = output(student, 2), output(teacher, 3)
    loss(s, t, batch(), same).backward()
    assert s.logits.grad is not None
    assert s.logits.grad.abs().sum() > 0
    for p in loss.parameters():
        assert p.grad is not None
        assert p.grad.abs().sum() > 0


@pytest.mark.parametrize("options", [o for o in ALL if hasattr(o, "standardize")], ids=lambda o: o.name)
def test_standardized_logits_have_no_scale(options: Any) -> None:
    s, t = output(SMALL, 4), output(BIG, 5)
    louder = Output(3.0 * s.logits + 1.0, s.features)
    loss = build(type(options)(standardize=True))
    torch.testing.assert_close(loss(louder, t, batch(), same), loss(s, t, batch(), same), rtol=1e-4, atol=1e-6)
    plain = build(type(options)())
    assert plain(louder, t, batch(), same) != plain(s, t, batch(), same)


@pytest.mark.parametrize("options", PAIRWISE, ids=lambda o: o.name)
def test_pairs_of_all_processes_are_compared(options: Any) -> None:
    loss, s, t = build(options), output(SMALL, 6), output(BIG, 7)
    whole = loss(s, t, batch(), same)
    assert loss.needs_global_batch
    mine, others = slice(0, 2), slice(2, 6)
    sent: list[Tensor] = []
    loss(
        part(s, others),
        part(t, others),
        Batch(torch.zeros(4, 3, 8, 8), batch().labels[2:], torch.arange(4)),
        note(sent),
    )
    rest = iter(sent)
    value = loss(
        part(s, mine),
        part(t, mine),
        Batch(torch.zeros(2, 3, 8, 8), batch().labels[:2], torch.arange(2)),
        lambda x: torch.cat([x, next(rest)]),
    )
    torch.testing.assert_close(value, whole)


def note(sent: list[Tensor]) -> Any:
    def gather(x: Tensor) -> Tensor:
        sent.append(x)
        return x

    return gather


@pytest.mark.parametrize("options", ALL, ids=lambda o: o.name)
def test_only_losses_that_span_the_batch_gather(options: Any) -> None:
    sent: list[Tensor] = []
    loss = build(options)
    loss(output(SMALL, 8), output(BIG, 9), batch(), note(sent))
    assert bool(sent) == loss.needs_global_batch
    assert all(x.dim() == 2 and len(x) == 6 for x in sent)


@pytest.mark.parametrize("options", ALL, ids=lambda o: o.name)
def test_batch_of_one(options: Any) -> None:
    loss, s, t = build(options), output(SMALL, 10, n=1), output(BIG, 11, n=1)
    value = loss(s, t, batch(1), same)
    value.backward()
    assert value.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loss.parameters())


@pytest.mark.parametrize("options", ALL, ids=lambda o: o.name)
def test_maps_of_any_layout(options: Any) -> None:
    loss, s, t = build(options), output(SMALL, 12), output(BIG, 13)
    value = loss.eval()(s, t, batch(), same)
    features = {name: f.to(memory_format=torch.channels_last) for name, f in s.features.items()}
    torch.testing.assert_close(loss(Output(s.logits, features), t, batch(), same), value)


def test_srd_projects_then_normalizes_both_sides() -> None:
    loss, s, t = build(config.SRD(exponent=3.0, temperature=2.0)), output(SMALL, 14), output(BIG, 15)
    (linear,) = (m for m in loss.modules() if isinstance(m, nn.Linear))
    assert (linear.in_features, linear.out_features) == (8, 12)
    norms = [m for m in loss.modules() if isinstance(m, nn.BatchNorm1d)]
    assert all(m.eps == 1e-4 and not m.affine for m in norms)
    assert len(norms) == 2

    def normal(x: Tensor) -> Tensor:
        return (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-4).sqrt()

    ours, theirs = normal(linear(s.features["block3"].mean((2, 3)))), normal(t.features["layer3"].mean((2, 3)))
    logits = {"student_logits": s.logits, "teacher_logits": t.logits}
    expected = srd(ours, theirs, **logits, exponent=3.0, temperature=2.0)
    torch.testing.assert_close(loss(s, t, batch(), same), expected)
    several = build(config.SRD(stages=["block2:layer2", "block3:layer3"]))
    alone = [build(config.SRD(stages=[pair])) for pair in ("block2:layer2", "block3:layer3")]
    for i, one in enumerate(alone):
        one.projectors[0].load_state_dict(several.projectors[i].state_dict())  # type: ignore[index,union-attr]
    values = torch.stack([one(s, t, batch(), same) for one in alone])
    soft = kd(s.logits, t.logits, temperature=1.0)
    torch.testing.assert_close(several(s, t, batch(), same), values.sum() - soft)


def test_srd_of_one_sample_teaches_by_its_logits_alone() -> None:
    loss, s, t = build(config.SRD()), output(SMALL, 16, n=1), output(BIG, 17, n=1)
    value = loss(s, t, batch(1), same)
    value.backward()
    soft = kd(s.logits, t.logits, temperature=1.0).item()
    assert value.item() == pytest.approx(soft + 2 * math.log(1e-24), rel=1e-6)
    grad = s.features["block3"].grad
    assert grad is not None
    assert grad.abs().max() == 0


def test_ctkd_trains_its_temperature_upwards_and_keeps_it() -> None:
    loss = build(config.CTKD())
    assert isinstance(loss, CTKD)
    assert loss.temperature.item() == pytest.approx(1 + 20 / (1 + math.exp(-1)))
    s, t = output(SMALL, 18), output(BIG, 19)
    slopes = []
    for step in (0, 45, 99, 1000):
        loss.set_progress(Progress(step=step, total_steps=2000, steps_per_epoch=10))
        slopes.append(torch.autograd.grad(loss(s, t, batch(), same), loss.theta)[0].item())
    strengths = [0.5 * (1 - math.cos(math.pi * e / 10)) for e in (1, 5, 10, 10)]
    assert [x / slopes[-1] for x in slopes] == pytest.approx(strengths, rel=1e-5)
    (plain,) = torch.autograd.grad(
        ctkd(s.logits, t.logits, temperature=1.0 + 20.0 * torch.sigmoid(loss.theta)), loss.theta
    )
    assert slopes[-1] == pytest.approx(-plain.item(), rel=1e-5)
    with torch.no_grad():
        loss.theta.fill_(-3.0)
    again = build(config.CTKD())
    again.load_state_dict(loss.state_dict())
    assert isinstance(again, CTKD)
    assert again.temperature.item() == loss.temperature.item()


@pytest.mark.parametrize(
    ("stage", "shapes", "found"),
    [
        ("penultimate", SMALL, "block2"),
        ("middle", SMALL, "block2"),
        ("middle", {**SMALL, "block4": (9, 2, 2)}, "block2"),
        ("penultimate", {**SMALL, "block4": (9, 2, 2)}, "block3"),
        ("block1", SMALL, "block1"),
        ("penultimate", VECTOR, "only"),
    ],
)
def test_uskd_reads_a_shallower_stage(stage: str, shapes: Any, found: str) -> None:
    loss = build(config.USKD(stage=stage), shapes)
    assert isinstance(loss, USKD)
    assert loss.stage == found
    s = output(shapes, 20)
    loss(s, output(BIG, 21), batch(), same).backward()
    reached = {name for name, f in s.features.items() if f.grad is not None}
    assert reached == {found}


def test_uskd_does_not_look_at_the_teacher() -> None:
    loss, s = build(config.USKD()), output(SMALL, 22)
    assert loss(s, output(BIG, 23), batch(), same) == loss(s, output(BIG, 24), batch(), same)
    other = Batch(torch.zeros(6, 3, 8, 8), torch.full((6,), 4), torch.arange(6))
    assert loss(s, output(BIG, 23), other, same) != loss(s, output(BIG, 23), batch(), same)


@pytest.mark.parametrize(
    ("options", "student", "teacher", "message"),
    [
        (config.USKD(stage="blok1"), SMALL, BIG, r"student stage 'blok1'; did you mean 'block1'"),
        (config.USKD(), {}, BIG, r"the student has no features"),
        (config.SRD(), {}, BIG, r"the student has no features"),
        (config.SRD(), SMALL, {}, r"the teacher has no features"),
        (config.SRD(stages=[]), SMALL, BIG, r"stages=\[\] is empty"),
    ],
)
def test_what_cannot_be_defined_is_refused_when_built(options: Any, student: Any, teacher: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build(options, student, teacher)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", ALL, ids=lambda o: o.name)
def test_one_class_is_refused(options: Any) -> None:
    with pytest.raises(UserError, match="at least 2 classes"):
        build(options, classes=1)
