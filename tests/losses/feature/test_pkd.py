"""Distillation by Pearson's correlation of channels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from kdschemes.config.losses import feature as config
from kdschemes.errors import UserError
from kdschemes.losses.feature.pkd import pkd
from tests.losses.cases import Flags, MapCase, Reference
from tests.losses.formulas import Array, to_smaller
from tests.losses.inputs import gradient, normal
from tests.losses.stubs import (
    BIG,
    SMALL,
    build,
    output,
    value_of,
)


def pearson(student: Array, teacher: Array) -> float:
    """Mean over channels of Pearson's correlation over samples and positions."""
    pairs = [(student[:, c].ravel(), teacher[:, c].ravel()) for c in range(student.shape[1])]
    return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairs]))


def formula(student: Array, teacher: Array, *, eps: float = 1e-6) -> float:
    student, teacher = to_smaller(student, teacher)
    total = 0.0
    for channel in range(student.shape[1]):
        standardized = []
        for x in (student[:, channel].ravel(), teacher[:, channel].ravel()):
            mean = math.fsum(x) / len(x)
            std = math.sqrt(math.fsum((v - mean) ** 2 for v in x) / (len(x) - 1))
            standardized.append([(v - mean) / (std + eps) for v in x])
        total += math.fsum((a - b) ** 2 for a, b in zip(*standardized, strict=True))
    return total / (2 * student.size)


CASES = {"pkd": MapCase(pkd, formula, by_sample=False)}
OPTIONS = [config.PKD(eps=0.1), config.PKD(stages="last")]
FLAGS = Flags(vectors=True)
REFERENCES: dict[str, Reference] = {"PKD.mmrazor": lambda x, p: pkd(x["s"], x["t"])}


SHAPES = [((3, 5, 4, 4), (3, 5, 4, 4)), ((2, 3, 8, 6), (2, 3, 4, 3)), ((1, 4, 3, 7), (1, 4, 6, 2))]


@pytest.mark.parametrize(("student", "teacher"), SHAPES)
@pytest.mark.parametrize("scale", [0.1, 1.0, 20.0])
def test_value_equals_the_formula(student: tuple[int, ...], teacher: tuple[int, ...], scale: float) -> None:
    s, t = normal(0, *student, scale=scale), normal(1, *teacher, scale=scale)
    arrays = s.numpy(), t.numpy()
    assert pkd(s, t).item() == pytest.approx(formula(*arrays), rel=1e-10)
    assert pkd(s, t, eps=0.3).item() == pytest.approx(formula(*arrays, eps=0.3), rel=1e-10)


def test_is_nearly_one_minus_the_correlation() -> None:
    s, t = normal(5, 4, 3, 5, 5), normal(6, 4, 3, 5, 5)
    m = s.numel() / 3
    truth = (1.0 - pearson(s.numpy(), t.numpy())) * (m - 1) / m
    assert pkd(s, t).item() == pytest.approx(truth, rel=1e-5)
    assert pkd(-2.0 * t, t).item() == pytest.approx(2.0 * (m - 1) / m, rel=1e-5)


def test_shift_and_scale_of_a_channel_change_nothing() -> None:
    s, t, by_channel = normal(11, 3, 4, 5, 5), normal(12, 3, 4, 5, 5), normal(13, 1, 4, 1, 1)
    torch.testing.assert_close(pkd(s * by_channel.abs() + by_channel, t), pkd(s, t), rtol=1e-4, atol=1e-8)


def test_large_features() -> None:
    s, t = normal(22, 3, 4, 5, 5), normal(23, 3, 4, 5, 5)
    ours = (s * 1e15).float().requires_grad_()
    value = pkd(ours, t.float())
    assert value.item() == pytest.approx(formula(s.numpy(), t.numpy()), rel=1e-4)
    assert gradient(value, ours).norm() > 0


def test_constant_channels_and_single_values_have_no_gradient() -> None:
    s = torch.full((2, 3, 4, 4), 0.1, requires_grad=True)
    value = pkd(s, normal(24, 2, 3, 4, 4).float())
    assert value.item() == pytest.approx(0.5 * 31 / 32, rel=1e-5)
    assert gradient(value, s).abs().max() == 0
    a, b = normal(25, 1, 3, 1, 1).requires_grad_(), normal(26, 1, 3, 1, 1)
    single = pkd(a, b)
    assert single.item() == 0.0
    assert gradient(single, a).abs().max() == 0


def test_offsets_cost_no_precision() -> None:
    ours, theirs = normal(27, 4, 3, 6, 6).float() + 1000.0, normal(28, 4, 3, 6, 6).float() + 1000.0
    truth = formula(ours.double().numpy(), theirs.double().numpy())
    assert pkd(ours, theirs).item() == pytest.approx(truth, rel=1e-4)


def test_the_module_sums_over_the_pairs() -> None:
    s, t = output(SMALL, 1), output(SMALL, 51)
    total = torch.stack([pkd(s.features[name], t.features[name], eps=0.1) for name in SMALL]).sum()
    assert value_of(build(config.PKD(eps=0.1), teacher=SMALL), s, t) == total


@pytest.mark.parametrize(
    ("options", "student", "teacher", "message"),
    [
        (config.PKD(), {"x": (10, 4)}, BIG, r"'x' is 10 tokens"),
    ],
)
def test_undefined_losses_are_refused_when_built(options: Any, student: Any, teacher: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build(options, student, teacher)
    assert "\n" not in str(error.value)
