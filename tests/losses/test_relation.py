"""Losses between relations: against the loop oracle, with degenerate batches, and at the edges of precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kdschemes.losses.relation import rkd as rkd_module
from kdschemes.losses.relation.fsp import fsp, fsp_matrix
from kdschemes.losses.relation.rkd import rkd_angle, rkd_distance
from tests.losses import oracles

LOSSES = {"distance": (rkd_distance, oracles.rkd_distance), "angle": (rkd_angle, oracles.rkd_angle)}
both = pytest.mark.parametrize("kind", LOSSES)


def normal(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(loss: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    return torch.autograd.grad(loss(*leaves), leaves)


@both
@pytest.mark.parametrize("n", [1, 2, 3, 9])
def test_rkd_equals_the_oracle(kind: str, n: int) -> None:
    loss, oracle = LOSSES[kind]
    s, t = normal(0, n, 5), normal(1, n, 8)
    assert loss(s, t).item() == pytest.approx(oracle(s.numpy(), t.numpy()), rel=1e-12, abs=1e-15)


@both
def test_rkd_gradients_of_both_sides(kind: str) -> None:
    loss, _ = LOSSES[kind]
    assert torch.autograd.gradcheck(loss, (normal(2, 5, 3).requires_grad_(), normal(3, 5, 4).requires_grad_()))
    assert torch.autograd.gradcheck(loss, (normal(2, 5, 3).requires_grad_(), normal(3, 5, 4)))
    assert torch.autograd.gradcheck(loss, (normal(2, 5, 3), normal(3, 5, 4).requires_grad_()))


@both
def test_rkd_is_invariant_to_similarities(kind: str) -> None:
    loss, _ = LOSSES[kind]
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
def test_rkd_of_one_sample_is_zero(kind: str, dtype: torch.dtype) -> None:
    loss, _ = LOSSES[kind]
    s, t = normal(8, 1, 6).to(dtype).requires_grad_(), normal(9, 1, 6).to(dtype).requires_grad_()
    value = loss(s, t)
    assert value.item() == 0.0
    assert all((g == 0).all() for g in torch.autograd.grad(value, (s, t)))


@both
@pytest.mark.parametrize("case", ["duplicates", "zero_rows", "collapsed", "both_collapsed", "tiny_gap"])
def test_rkd_of_degenerate_embeddings(kind: str, case: str) -> None:
    loss, oracle = LOSSES[kind]
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
    assert loss(s, t).item() == pytest.approx(oracle(s.double().numpy(), t.double().numpy()), rel=1e-5, abs=1e-12)
    for g in gradients(loss, s, t):
        assert g.isfinite().all()
        assert g.abs().max() < 100.0


def test_angle_gradient_leaves_out_differences_of_length_zero() -> None:
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

    torch.testing.assert_close(gradients(rkd_angle, s, t), gradients(all_at_once, s, t))


@both
def test_rkd_of_offset_embeddings_keeps_its_digits(kind: str) -> None:
    loss, _ = LOSSES[kind]
    s, t = (normal(12, 16, 32) + 1000.0).float(), (normal(13, 16, 32) + 1000.0).float()
    assert loss(s, t).item() == pytest.approx(loss(s.double(), t.double()).item(), rel=1e-5)
    for g, truth in zip(gradients(loss, s, t), gradients(loss, s.double(), t.double()), strict=True):
        assert (g.double() - truth).norm() / truth.norm() < 1e-5


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rkd_in_half_precision(kind: str, dtype: torch.dtype) -> None:
    loss, _ = LOSSES[kind]
    s, t = normal(14, 16, 256, scale=3.0), normal(15, 16, 256, scale=3.0)
    truth = loss(s, t).item()
    half = loss(s.to(dtype), t.to(dtype))
    with torch.autocast("cpu", dtype=dtype):
        auto = loss(s.float(), t.float())
    assert half.dtype == auto.dtype == torch.float32
    assert half.item() == pytest.approx(truth, rel=1e-2)
    assert auto.item() == pytest.approx(truth, rel=1e-5)
    truths = gradients(loss, s, t)
    for g, exact in zip(gradients(loss, s.to(dtype), t.to(dtype)), truths, strict=True):
        assert g.dtype == dtype
        assert (g.double() - exact).norm() / exact.norm() < 0.05


class LargestTensor(TorchDispatchMode):
    """Notes how many elements the largest tensor has that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.elements = max(self.elements, out.numel())
        return out


def test_angles_are_never_all_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    s, t = normal(16, 40, 6), normal(17, 40, 8)
    whole = rkd_angle(s, t), *gradients(rkd_angle, s, t)
    monkeypatch.setattr(rkd_module, "_CHUNK_ELEMENTS", 3 * 40 * 40)
    with LargestTensor() as largest:
        chunked = rkd_angle(s, t), *gradients(rkd_angle, s, t)
    torch.testing.assert_close(chunked, whole)
    assert largest.elements == 3 * 40 * 40


def test_angle_refuses_a_second_derivative() -> None:
    s = normal(18, 4, 3).requires_grad_()
    (g,) = torch.autograd.grad(rkd_angle(s, normal(19, 4, 3)).square(), s, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable"):
        g.sum().backward()


@pytest.mark.parametrize("sizes", [((4, 4), (4, 4)), ((6, 4), (3, 2)), ((5, 3), (2, 7)), ((1, 1), (4, 4))])
def test_fsp_equals_the_oracle(sizes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    student = normal(20, 3, 4, *sizes[0]), normal(21, 3, 5, *sizes[1])
    teacher = normal(22, 3, 4, 8, 6), normal(23, 3, 5, 4, 3)
    arrays = [tuple(x.numpy() for x in pair) for pair in (student, teacher)]
    torch.testing.assert_close(fsp_matrix(*student), torch.from_numpy(oracles.fsp_matrix(*arrays[0])))
    assert fsp(student, teacher).item() == pytest.approx(oracles.fsp(*arrays), rel=1e-12)
    assert fsp(student, student) == 0


def test_fsp_gradients_layout_and_precision() -> None:
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
