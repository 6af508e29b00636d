"""Simple recipe distillation: log of a high power of projected features' differences, and KD."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdschemes.config.losses import response as config
from kdschemes.errors import UserError
from kdschemes.losses.response.kd import kd
from kdschemes.losses.response.srd import srd, srd_features
from tests.losses import formulas
from tests.losses.cases import Inputs, LogitCase, Parameters, Reference
from tests.losses.formulas import Array
from tests.losses.inputs import gradients, logits
from tests.losses.stubs import BIG, SMALL, batch, build, output, same


def formula_of_features(student: Array, teacher: Array, *, exponent: float) -> float:
    gaps = [abs(a - b) ** exponent for a, b in zip(student.ravel(), teacher.ravel(), strict=True)]
    return 2.0 * math.log(math.fsum(gaps))


CASES = {
    "srd": LogitCase(
        lambda z, v, y: srd(z, v, student_logits=z, teacher_logits=v, exponent=4.0, temperature=1.0),
        by_sample=False,
        zero=False,
        shift_free=False,
    )
}
OPTIONS = [config.SRD(stages="all"), config.SRD(exponent=3.0, temperature=2.0)]


def simple_recipe(x: Inputs, p: Parameters) -> Tensor:
    logits = {"student_logits": x["ls"], "teacher_logits": x["lt"]}
    return srd(x["s"], x["t"], **logits, exponent=float(p["e"]), temperature=float(p["T"]))


REFERENCES: dict[str, Reference] = {"SRD.torchdistill": simple_recipe}


@pytest.mark.parametrize("exponent", [1.0, 2.0, 4.0])
@pytest.mark.parametrize(("n", "d"), [(8, 16), (1, 3), (5, 1)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_value_equals_the_formula(n: int, d: int, exponent: float, scale: float) -> None:
    s, t = logits(22, n, d, scale), logits(23, n, d, scale)
    z, v = logits(24, n, 5, scale), logits(25, n, 5, scale)
    truth = formula_of_features(s.numpy(), t.numpy(), exponent=exponent)
    assert srd_features(s, t, exponent=exponent).item() == pytest.approx(truth, rel=1e-10)
    value = srd(s, t, student_logits=z, teacher_logits=v, exponent=exponent, temperature=2.0)
    assert value.item() == pytest.approx(truth + formulas.kd(z.numpy(), v.numpy(), temperature=2.0) / 4, rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("exponent", [1.0, 4.0])
@pytest.mark.parametrize("gap", [0.0, 1e-30, 1e-12, 1e-6, 1e4, 1e30])
def test_finite_whatever_the_difference(gap: float, exponent: float, dtype: torch.dtype) -> None:
    s, t = torch.full((3, 4), gap, dtype=dtype, requires_grad=True), torch.zeros(3, 4, dtype=dtype)
    value = srd_features(s, t, exponent=exponent)
    (g,) = gradients(value, s)
    assert value.isfinite()
    assert g.isfinite().all()
    if gap == 0.0:
        assert value.item() == pytest.approx(2 * math.log(1e-24))
        assert g.abs().max() == 0
    if gap >= 1e4:
        assert value.item() == pytest.approx(2 * math.log(12) + 2 * exponent * math.log(s[0, 0].item()), rel=1e-3)
        assert (gap * g).sum().item() == pytest.approx(2 * exponent, rel=2e-2)


def test_a_factor_adds_its_logarithm_times_the_exponent() -> None:
    s, t = logits(26), logits(27)
    shift = srd_features(10 * s, 10 * t, exponent=4.0) - srd_features(s, t, exponent=4.0)
    assert shift.item() == pytest.approx(8 * math.log(10))
    torch.testing.assert_close(srd_features(s, t, exponent=4.0), srd_features(t, s, exponent=4.0))


def test_the_module_projects_and_then_normalizes_both_sides() -> None:
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


def test_a_single_sample_teaches_only_by_its_logits() -> None:
    loss, s, t = build(config.SRD()), output(SMALL, 16, n=1), output(BIG, 17, n=1)
    value = loss(s, t, batch(1), same)
    value.backward()
    soft = kd(s.logits, t.logits, temperature=1.0).item()
    assert value.item() == pytest.approx(soft + 2 * math.log(1e-24), rel=1e-6)
    grad = s.features["block3"].grad
    assert grad is not None
    assert grad.abs().max() == 0


@pytest.mark.parametrize(
    ("options", "student", "teacher", "message"),
    [
        (config.SRD(), {}, BIG, r"student has no features"),
        (config.SRD(), SMALL, {}, r"teacher has no features"),
        (config.SRD(stages=[]), SMALL, BIG, r"stages=\[\].*all, last, middle"),
    ],
)
def test_undefined_losses_are_refused_when_built(options: Any, student: Any, teacher: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build(options, student, teacher)
    assert "\n" not in str(error.value)
