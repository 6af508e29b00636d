"""Similarity preserving."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdschemes.config.losses import relation as config
from kdschemes.errors import UserError
from kdschemes.losses.relation.sp import similarity_preserving
from tests.losses.cases import Flags, Inputs, Parameters, Reference, RowCase
from tests.losses.formulas import Array, dot, unit
from tests.losses.inputs import gradients_at, normal
from tests.losses.stubs import BIG, SMALL, build, output, value_of


def formula(student: Array, teacher: Array, *, order: int = 2) -> float:
    n = len(student)
    gram = [np.array([[dot(x[i], x[j]) for j in range(n)] for i in range(n)]) for x in (student, teacher)]
    s, t = ([unit(row, order) for row in g] for g in gram)
    return math.fsum((s[i][j] - t[i][j]) ** 2 for i in range(n) for j in range(n)) / n**2


CASES = {
    "sp": RowCase(similarity_preserving, formula, scale_free=True),
    "sp, row_norm l1": RowCase(
        partial(similarity_preserving, row_norm="l1"), partial(formula, order=1), scale_free=True
    ),
}
OPTIONS = [config.SP(row_norm="l1")]
FLAGS = Flags(vectors=True, zero_of_one_sample=True)


def similarity(x: Inputs, p: Parameters) -> Tensor:
    return similarity_preserving(x["s"], x["t"])


REFERENCES: dict[str, Reference] = {
    "SP.RepDistiller": similarity,
    "SP.mdistiller": similarity,
    "SP.torchdistill": lambda x, p: similarity_preserving(x["s"], x["t"], row_norm="l1"),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_maps_in_low_precision(dtype: torch.dtype) -> None:
    s, t = normal(21, 16, 64, 16, 16, scale=3.0).relu(), normal(22, 16, 64, 16, 16, scale=3.0).relu()
    truth, (exact, _) = similarity_preserving(s, t).item(), gradients_at(similarity_preserving, s, t)
    half = similarity_preserving(s.to(dtype), t.to(dtype))
    with torch.autocast("cpu", dtype=dtype):
        auto = similarity_preserving(s.float(), t.float())
    assert half.item() == pytest.approx(truth, rel=1e-2)
    assert auto.item() == pytest.approx(truth, rel=1e-2)
    (rounded, _) = gradients_at(similarity_preserving, s.to(dtype).float(), t.to(dtype).float())
    assert rounded.norm().item() == pytest.approx(exact.norm().item(), rel=1e-2)


def test_maps_of_any_layout() -> None:
    s, t = normal(23, 4, 6, 5, 3), normal(24, 4, 8, 2, 7)
    value = similarity_preserving(s, t)
    last = torch.channels_last
    torch.testing.assert_close(similarity_preserving(s.to(memory_format=last), t.to(memory_format=last)), value)
    torch.testing.assert_close(similarity_preserving(s.flatten(1), t.flatten(2)), value)
    torch.testing.assert_close(similarity_preserving(s.transpose(2, 3), t), value)


@pytest.mark.parametrize("row_norm", ["l2", "l1"])
def test_the_modules_value_is_that_of_the_function(row_norm: Any) -> None:
    s, t = output(SMALL, 0), output(BIG, 1)
    truth = similarity_preserving(s.features["block3"], t.features["layer3"], row_norm=row_norm)
    torch.testing.assert_close(value_of(build(config.SP(row_norm=row_norm)), s, t), truth)


@pytest.mark.parametrize(
    ("options", "student", "teacher", "message"),
    [
        (config.SP(), {}, BIG, r"student has no features"),
    ],
)
def test_undefined_losses_are_refused_when_built(options: Any, student: Any, teacher: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build(options, student, teacher)
    assert "\n" not in str(error.value)
