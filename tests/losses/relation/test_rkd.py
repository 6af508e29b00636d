"""Relational knowledge distillation: distances and angles."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kdschemes.config.losses import relation as config
from kdschemes.core.types import Output
from kdschemes.errors import UserError
from kdschemes.losses.relation import rkd as rkd_module
from kdschemes.losses.relation.rkd import rkd_angle, rkd_distance
from kdschemes.losses.rows import unit_rows
from tests.losses.cases import Flags, Inputs, Parameters, Reference, RowCase
from tests.losses.formulas import Array
from tests.losses.inputs import gradients_at, normal
from tests.losses.stubs import BIG, SMALL, batch, build, output, same, value_of


def smooth_l1(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def formula_of_distances(student: Array, teacher: Array) -> float:
    n = len(student)

    def relative(x: Array) -> Array:
        distances = np.zeros((n, n))
        for i in range(n):
            for j in range(n):
                if i != j:
                    distances[i, j] = max(math.sqrt(math.fsum((x[i] - x[j]) ** 2)), 1e-6)
        return distances / (distances.sum() / (n * (n - 1)))

    if n == 1:
        return 0.0
    s, t = relative(student), relative(teacher)
    return math.fsum(smooth_l1(s[i, j] - t[i, j]) for i in range(n) for j in range(n)) / n**2


def formula_of_angles(student: Array, teacher: Array) -> float:
    n = len(student)

    def cosine(x: Array, i: int, j: int, k: int) -> float:
        a, b = x[i] - x[j], x[k] - x[j]
        lengths = math.sqrt(a @ a) * math.sqrt(b @ b)
        return float(a @ b / lengths) if lengths else 0.0

    triplets = [(i, j, k) for j in range(n) for i in range(n) for k in range(n)]
    return math.fsum(smooth_l1(cosine(student, *m) - cosine(teacher, *m)) for m in triplets) / n**3


CASES = {
    "rkd of distances": RowCase(rkd_distance, formula_of_distances),
    "rkd of angles": RowCase(rkd_angle, formula_of_angles),
}
OPTIONS = [config.RKD(normalize=True), config.RKD(distance=2.0, angle=3.0), config.RKD(distance=0.0, angle=3.0)]
FLAGS = Flags(vectors=True, zero_of_one_sample=True)


def relations(x: Inputs, p: Parameters) -> Tensor:
    return p["wd"] * rkd_distance(x["s"], x["t"]) + p["wa"] * rkd_angle(x["s"], x["t"])


def unit_relations(x: Inputs, p: Parameters) -> Tensor:
    return relations({name: unit_rows(e) for name, e in x.items()}, p)


REFERENCES: dict[str, Reference] = {
    "RKD.RepDistiller": relations,
    "RKD.lenscloth": relations,
    "RKD.mdistiller": relations,
    "RKD.torchdistill": relations,
    "RKD.mmrazor": unit_relations,
}


both = pytest.mark.parametrize("name", CASES)


@both
@pytest.mark.parametrize("n", [1, 2, 3, 9])
def test_value_equals_the_formula(name: str, n: int) -> None:
    loss, formula = CASES[name].loss, CASES[name].formula
    s, t = normal(0, n, 5), normal(1, n, 8)
    assert loss(s, t).item() == pytest.approx(formula(s.numpy(), t.numpy()), rel=1e-12, abs=1e-15)


@both
def test_gradients_of_both_sides(name: str) -> None:
    loss = CASES[name].loss
    assert torch.autograd.gradcheck(loss, (normal(2, 5, 3).requires_grad_(), normal(3, 5, 4).requires_grad_()))
    assert torch.autograd.gradcheck(loss, (normal(2, 5, 3).requires_grad_(), normal(3, 5, 4)))
    assert torch.autograd.gradcheck(loss, (normal(2, 5, 3), normal(3, 5, 4).requires_grad_()))


@both
def test_rotation_scale_and_shift_change_nothing(name: str) -> None:
    loss = CASES[name].loss
    s, t = normal(4, 7, 4), normal(5, 7, 4)
    rotation = torch.linalg.qr(normal(6, 4, 4))[0]
    order = torch.randperm(7)
    value = loss(s, t)
    torch.testing.assert_close(loss(3.0 * s @ rotation + normal(7, 1, 4), t), value)
    torch.testing.assert_close(loss(s[order], t[order]), value)
    torch.testing.assert_close(loss(t, s), value)
    assert loss(2.0 * t @ rotation, t).item() == pytest.approx(0.0, abs=1e-25)
    assert loss(s[order], t) != value


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_one_sample_gives_zero(name: str, dtype: torch.dtype) -> None:
    loss = CASES[name].loss
    s, t = normal(8, 1, 6).to(dtype).requires_grad_(), normal(9, 1, 6).to(dtype).requires_grad_()
    value = loss(s, t)
    assert value.item() == 0.0
    assert all((g == 0).all() for g in torch.autograd.grad(value, (s, t)))


@both
@pytest.mark.parametrize("case", ["duplicates", "zero_rows", "collapsed", "both_collapsed", "tiny_gap"])
def test_degenerate_embeddings(name: str, case: str) -> None:
    loss, formula = CASES[name].loss, CASES[name].formula
    s, t = normal(10, 6, 4), normal(11, 6, 4)
    if case == "duplicates":
        s[1] = s[0]
    elif case == "zero_rows":
        s[2:4] = 0.0
    elif case == "collapsed":
        s[:] = s[0]
    elif case == "both_collapsed":
        s[:], t[:] = s[0], t[0]
    else:
        s[1] = s[0] + 1e-4
    s, t = s.float(), t.float()
    assert loss(s, t).item() == pytest.approx(formula(s.double().numpy(), t.double().numpy()), rel=1e-5, abs=1e-12)
    for g in gradients_at(loss, s, t):
        assert g.isfinite().all()
        assert g.abs().max() < 100.0


def test_the_gradient_of_angles_leaves_out_differences_of_length_zero() -> None:
    s, t = normal(28, 6, 4), normal(29, 6, 4)
    s[1] = s[0]
    t[4] = t[2]

    def cosines(x: Tensor) -> Tensor:
        differences = x[None] - x[:, None]
        zero = (differences == 0).all(2, keepdim=True)
        units = torch.where(zero, 0.0, differences / differences.masked_fill(zero, 1.0).norm(dim=2, keepdim=True))
        return units @ units.mT

    def all_at_once(student: Tensor, teacher: Tensor) -> Tensor:
        return torch.nn.functional.smooth_l1_loss(cosines(student), cosines(teacher))

    torch.testing.assert_close(gradients_at(rkd_angle, s, t), gradients_at(all_at_once, s, t))


@both
def test_offset_embeddings_lose_no_digits(name: str) -> None:
    loss = CASES[name].loss
    s, t = (normal(12, 16, 32) + 1000.0).float(), (normal(13, 16, 32) + 1000.0).float()
    assert loss(s, t).item() == pytest.approx(loss(s.double(), t.double()).item(), rel=1e-5)
    for g, truth in zip(gradients_at(loss, s, t), gradients_at(loss, s.double(), t.double()), strict=True):
        assert (g.double() - truth).norm() / truth.norm() < 1e-5


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision(name: str, dtype: torch.dtype) -> None:
    loss = CASES[name].loss
    s, t = normal(14, 16, 256, scale=3.0), normal(15, 16, 256, scale=3.0)
    truth = loss(s, t).item()
    half = loss(s.to(dtype), t.to(dtype))
    with torch.autocast("cpu", dtype=dtype):
        auto = loss(s.float(), t.float())
    assert half.dtype == auto.dtype == torch.float32
    assert half.item() == pytest.approx(truth, rel=1e-2)
    assert auto.item() == pytest.approx(truth, rel=1e-5)
    truths = gradients_at(loss, s, t)
    for g, exact in zip(gradients_at(loss, s.to(dtype), t.to(dtype)), truths, strict=True):
        assert g.dtype == dtype
        assert (g.double() - exact).norm() / exact.norm() < 0.05


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.elements = max(self.elements, out.numel())
        return out


def test_angles_are_never_all_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    s, t = normal(16, 40, 6), normal(17, 40, 8)
    whole = rkd_angle(s, t), *gradients_at(rkd_angle, s, t)
    monkeypatch.setattr(rkd_module, "_CHUNK_ELEMENTS", 3 * 40 * 40)
    with LargestTensor() as largest:
        chunked = rkd_angle(s, t), *gradients_at(rkd_angle, s, t)
    torch.testing.assert_close(chunked, whole)
    assert largest.elements == 3 * 40 * 40


def test_angles_have_no_second_derivative() -> None:
    s = normal(18, 4, 3).requires_grad_()
    (g,) = torch.autograd.grad(rkd_angle(s, normal(19, 4, 3)).square(), s, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable"):
        g.sum().backward()


def test_the_lengths_of_unit_rows_change_nothing() -> None:
    s, t, lengths = normal(37, 6, 4), normal(38, 6, 4), normal(39, 6, 1).exp()
    for loss in (rkd_distance, rkd_angle):
        torch.testing.assert_close(loss(unit_rows(lengths * s), t), loss(unit_rows(s), t))


def test_the_module_gathers_embeddings_of_all_processes() -> None:
    loss = build(config.RKD())
    student, teacher = output(SMALL, 2, n=6), output(BIG, 3, n=6)
    whole = loss(student, teacher, batch(6), same)
    halves = [Output(o.logits[:3], {name: f[:3] for name, f in o.features.items()}) for o in (student, teacher)]
    rest = iter([o.features[s][3:].mean((2, 3)) for o, s in ((student, "block3"), (teacher, "layer3"))])
    value = loss(*halves, batch(3), lambda x: torch.cat([x, next(rest)]))
    torch.testing.assert_close(value, whole)


def test_the_modules_value_is_that_of_the_functions() -> None:
    s, t = output(SMALL, 4), output(BIG, 5)
    ours, theirs = s.features["block3"].mean((2, 3)), t.features["layer3"].mean((2, 3))
    rkd = value_of(build(config.RKD(distance=2.0, angle=3.0)), s, t)
    torch.testing.assert_close(rkd, 2 * rkd_distance(ours, theirs) + 3 * rkd_angle(ours, theirs))
    only_angle = value_of(build(config.RKD(distance=0.0, angle=3.0)), s, t)
    torch.testing.assert_close(only_angle, 3 * rkd_angle(ours, theirs))
    units = unit_rows(ours), unit_rows(theirs)
    normalized = value_of(build(config.RKD(normalize=True)), s, t)
    torch.testing.assert_close(normalized, 25 * rkd_distance(*units) + 50 * rkd_angle(*units))


@pytest.mark.parametrize(
    ("options", "student", "teacher", "message"),
    [
        (config.RKD(), SMALL, {}, r"teacher has no features"),
        (config.RKD(distance=0.0, angle=0.0), SMALL, BIG, r"rkd .*distance=0.*angle=0"),
    ],
)
def test_undefined_losses_are_refused_when_built(options: Any, student: Any, teacher: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build(options, student, teacher)
    assert "\n" not in str(error.value)
