"""Flow of solution procedure."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdschemes.config.losses import relation as config
from kdschemes.errors import UserError
from kdschemes.losses.relation.fsp import fsp, fsp_matrix
from tests.losses import formulas
from tests.losses.cases import Reference
from tests.losses.formulas import Array, length, to_smaller
from tests.losses.inputs import gradients_at, normal
from tests.losses.stubs import BIG, SMALL, batch, build, output, same


def formula_of_matrix(a: Array, b: Array) -> Array:
    a, b = to_smaller(a, b)
    n, height, width = len(a), *a.shape[2:]
    out = np.zeros((n, a.shape[1], b.shape[1]))
    for m, i, j in np.ndindex(*out.shape):
        out[m, i, j] = sum(a[m, i, y, x] * b[m, j, y, x] for y in range(height) for x in range(width))
    return out / (height * width)


def formula(student: tuple[Array, Array], teacher: tuple[Array, Array]) -> float:
    return formulas.hint(formula_of_matrix(*student), formula_of_matrix(*teacher))


def formula_of_matrix_of_max(a: Array, b: Array) -> Array:
    """Flow between two stages, the larger max-pooled: bin i covers rows floor(i H / h) to ceil((i + 1) H / h)."""
    height, width = min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3])

    def position(x: Array, n: int, c: int, i: int, j: int) -> float:
        rows = slice(i * x.shape[2] // height, -(-(i + 1) * x.shape[2] // height))
        columns = slice(j * x.shape[3] // width, -(-(j + 1) * x.shape[3] // width))
        return float(x[n, c, rows, columns].max())

    out = np.zeros((len(a), a.shape[1], b.shape[1]))
    for n, c, d in np.ndindex(*out.shape):
        for i, j in np.ndindex(height, width):
            out[n, c, d] += position(a, n, c, i, j) * position(b, n, d, i, j) / (height * width)
    return out


def formula_of_columns(student: tuple[Array, Array], teacher: tuple[Array, Array]) -> float:
    gap = formula_of_matrix_of_max(*student) - formula_of_matrix_of_max(*teacher)
    return math.fsum(length(gap[n, :, j]) for n in range(len(gap)) for j in range(gap.shape[2])) / len(gap)


OPTIONS = [config.FSP(pooling="max", distance="column_norms")]
REFERENCES: dict[str, Reference] = {
    "FSP.RepDistiller": lambda x, p: fsp((x["s"], x["s2"]), (x["t"], x["t2"])),
    "FSP.torchdistill": lambda x, p: fsp((x["s"], x["s2"]), (x["t"], x["t2"]), pooling="max", distance="column_norms"),
}


@pytest.mark.parametrize("sizes", [((4, 4), (4, 4)), ((6, 4), (3, 2)), ((5, 3), (2, 7)), ((1, 1), (4, 4))])
def test_value_equals_the_formula(sizes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    student = normal(20, 3, 4, *sizes[0]), normal(21, 3, 5, *sizes[1])
    teacher = normal(22, 3, 4, 8, 6), normal(23, 3, 5, 4, 3)
    arrays = [tuple(x.numpy() for x in pair) for pair in (student, teacher)]
    torch.testing.assert_close(fsp_matrix(*student), torch.from_numpy(formula_of_matrix(*arrays[0])))
    assert fsp(student, teacher).item() == pytest.approx(formula(*arrays), rel=1e-12)
    assert fsp(student, student) == 0


def test_gradients_layout_and_precision() -> None:
    s, t = (normal(24, 2, 3, 4, 4), normal(25, 2, 2, 2, 3)), (normal(26, 2, 3, 2, 2), normal(27, 2, 2, 2, 2))
    leaves = [x.requires_grad_() for x in (*s, *t)]
    assert torch.autograd.gradcheck(lambda a, b, c, d: fsp((a, b), (c, d)), leaves)
    value = fsp(s, t)
    last = s[0].to(memory_format=torch.channels_last), s[1].to(memory_format=torch.channels_last)
    torch.testing.assert_close(fsp(last, t), value)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        auto = fsp((s[0].float(), s[1].float()), (t[0].float(), t[1].float()))
    assert auto.dtype == torch.float32
    assert auto.item() == pytest.approx(value.item(), rel=1e-5)
    half = fsp((s[0].half(), s[1].half()), (t[0].half(), t[1].half()))
    assert half.item() == pytest.approx(value.item(), rel=1e-2)
    rows = [fsp((s[0][i : i + 1], s[1][i : i + 1]), (t[0][i : i + 1], t[1][i : i + 1])) for i in range(2)]
    torch.testing.assert_close(torch.stack(rows).mean(), value)


@pytest.mark.parametrize("sizes", [((4, 4), (4, 4)), ((6, 4), (3, 2)), ((5, 3), (2, 7)), ((1, 1), (4, 4))])
def test_column_norms_equal_the_formula(sizes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    student = normal(40, 3, 4, *sizes[0]), normal(41, 3, 5, *sizes[1])
    teacher = normal(42, 3, 4, 8, 6), normal(43, 3, 5, 4, 3)
    arrays = [tuple(x.numpy() for x in pair) for pair in (student, teacher)]
    value = fsp(student, teacher, pooling="max", distance="column_norms")
    assert value.item() == pytest.approx(formula_of_columns(*arrays), rel=1e-10)


def test_column_norms_of_equal_columns() -> None:
    s, t = (normal(44, 3, 4, 4, 4), normal(45, 3, 5, 4, 4)), (normal(46, 3, 4, 2, 2), normal(47, 3, 5, 2, 2))
    s[1][:, 2] = t[1][:, 2] = 0.0

    def loss(*x: Tensor) -> Tensor:
        return fsp((x[0], x[1]), (x[2], x[3]), pooling="max", distance="column_norms")

    assert torch.autograd.gradcheck(loss, [x.clone().requires_grad_() for x in (s[0], normal(48, 3, 5, 4, 4), *t)])
    assert all(g.isfinite().all() for g in gradients_at(loss, *s, *t))
    assert all((g == 0).all() for g in gradients_at(loss, *s, *s))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        auto = loss(*(x.float() for x in (*s, *t)))
    assert auto.item() == pytest.approx(loss(*s, *t).item(), rel=1e-5)


def test_the_module_adapts_channels_where_they_differ() -> None:
    loss = build(config.FSP())
    convolutions = [m for m in loss.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels) for m in convolutions] == [(4, 8), (8, 12)]
    same_channels = build(config.FSP(), teacher=SMALL)
    assert not list(same_channels.parameters())
    s, t = output(SMALL, 6), output(SMALL, 7)
    f, g = s.features, t.features
    expected = fsp((f["block1"], f["block2"]), (g["block1"], g["block2"])) + fsp(
        (f["block2"], f["block3"]), (g["block2"], g["block3"])
    )
    torch.testing.assert_close(same_channels(s, t, batch(), same), expected)


@pytest.mark.parametrize(
    ("options", "student", "teacher", "message"),
    [
        (config.FSP(stages="last"), SMALL, BIG, r"fsp .*block3:layer3"),
        (config.FSP(), {"exit": (8, 4, 4)}, BIG, r"fsp .*exit:layer3"),
    ],
)
def test_undefined_losses_are_refused_when_built(options: Any, student: Any, teacher: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build(options, student, teacher)
    assert "\n" not in str(error.value)
