"""SP, CC, PKT, IRG and the further conventions of RKD and FSP: against loop oracles and where references fail."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kdschemes.losses.relation.cc import kernel_congruence, neighbor_congruence
from kdschemes.losses.relation.fsp import fsp
from kdschemes.losses.relation.irg import irg_edges, irg_transformation
from kdschemes.losses.relation.pkt import probabilistic_transfer
from kdschemes.losses.relation.rkd import rkd_angle, rkd_distance
from kdschemes.losses.relation.sp import similarity_preserving
from kdschemes.losses.rows import unit_rows
from tests.losses import oracles_relation as oracles


def normal(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(loss: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    return torch.autograd.grad(loss(*leaves), leaves)


def kernel(student: Tensor, teacher: Tensor) -> Tensor:
    return kernel_congruence(student, teacher, gamma=0.4, order=2)


def absolute_rows(student: Tensor, teacher: Tensor) -> Tensor:
    return similarity_preserving(student, teacher, row_norm="l1")


def edges(student: Tensor, teacher: Tensor) -> Tensor:
    return (irg_edges(student) - irg_edges(teacher)).square().mean()


LOSSES: dict[str, tuple[Any, Any]] = {
    "sp": (similarity_preserving, oracles.similarity_preserving),
    "sp_l1": (absolute_rows, lambda s, t: oracles.similarity_preserving(s, t, order=1)),
    "neighbor": (neighbor_congruence, oracles.neighbor_congruence),
    "kernel": (kernel, lambda s, t: oracles.kernel_congruence(s, t, gamma=0.4, order=2)),
    "pkt": (probabilistic_transfer, oracles.probabilistic_transfer),
    "edges": (edges, lambda s, t: ((oracles.irg_edges(s) - oracles.irg_edges(t)) ** 2).mean()),
}
each = pytest.mark.parametrize("name", LOSSES)
SCALE_FREE = ["sp", "sp_l1", "kernel", "edges"]


@each
@pytest.mark.parametrize("shape", [(1, 5), (2, 3), (3, 16), (9, 4)])
def test_values_equal_the_oracle(name: str, shape: tuple[int, int]) -> None:
    loss, oracle = LOSSES[name]
    for scale in (1.0, 30.0):
        s, t = normal(0, *shape, scale=scale), normal(1, *shape)
        assert loss(s, t).item() == pytest.approx(oracle(s.numpy(), t.numpy()), rel=1e-10, abs=1e-15)
    if name != "neighbor":
        s, t = normal(2, *shape), normal(3, shape[0], 7)
        assert loss(s, t).item() == pytest.approx(oracle(s.numpy(), t.numpy()), rel=1e-10, abs=1e-15)


@each
def test_gradients_of_both_sides(name: str) -> None:
    loss, _ = LOSSES[name]
    assert torch.autograd.gradcheck(loss, (normal(4, 5, 3).requires_grad_(), normal(5, 5, 3).requires_grad_()))


@each
def test_zero_at_equality_and_symmetry_of_the_batch(name: str) -> None:
    loss, _ = LOSSES[name]
    s, t = normal(6, 7, 4), normal(7, 7, 4)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    value = loss(s, t)
    assert value > 0
    assert loss(t, t).item() == pytest.approx(0.0, abs=1e-25)
    assert bool(torch.isclose(loss(s[order], t[order]), value)) == (name != "neighbor")
    assert not torch.isclose(loss(s[order], t), value)


@pytest.mark.parametrize("name", ["sp", "kernel", "edges"])
def test_invariance_to_rotation(name: str) -> None:
    loss, _ = LOSSES[name]
    s, t = normal(8, 6, 4), normal(9, 6, 4)
    rotation = torch.linalg.qr(normal(10, 4, 4))[0]
    torch.testing.assert_close(loss(s @ rotation, t), loss(s, t))


@pytest.mark.parametrize("name", SCALE_FREE)
@pytest.mark.parametrize("scale", [1e-20, 1e-10, 1e10, 1e18])
def test_no_scale_overflows_or_vanishes(name: str, scale: float) -> None:
    loss, _ = LOSSES[name]
    s, t = normal(11, 6, 64), normal(12, 6, 64)
    value = loss(scale * s.float(), t.float())
    assert value.item() == pytest.approx(loss(s, t).item(), rel=1e-4)
    ours, truth = (gradients(loss, x, t.to(x.dtype))[0].double() for x in (scale * s.float(), s))
    torch.testing.assert_close(scale * ours, truth, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("scale", [1e-3, 1e10, 1e18, 1e30])
def test_pkt_of_large_features(scale: float) -> None:
    s, t = normal(13, 6, 64), normal(14, 6, 64)
    value = probabilistic_transfer(scale * s.float(), t.float())
    assert value.item() == pytest.approx(probabilistic_transfer(s, t).item(), rel=1e-3)
    assert all(g.isfinite().all() for g in gradients(probabilistic_transfer, scale * s.float(), t.float()))


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_batch_of_one_is_zero(name: str, dtype: torch.dtype) -> None:
    loss, _ = LOSSES[name]
    s, t = normal(15, 1, 6).to(dtype), normal(16, 1, 6).to(dtype)
    assert loss(s, t) == 0
    assert all((g == 0).all() for g in gradients(loss, s, t))


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("who", ["student", "teacher", "both", "all"])
def test_rows_of_zeros(name: str, dtype: torch.dtype, who: str) -> None:
    loss, oracle = LOSSES[name]
    s, t = normal(17, 6, 5), normal(18, 6, 5)
    for x, here in ((s, who != "teacher"), (t, who != "student")):
        if here:
            x[2:4] = 0.0
        if who == "all":
            x[:] = 0.0
    s, t = s.to(dtype), t.to(dtype)
    truth = oracle(s.double().numpy(), t.double().numpy())
    assert loss(s, t).item() == pytest.approx(truth, rel=1e-4, abs=1e-7)
    for g, x in zip(gradients(loss, s, t), (s, t), strict=True):
        assert g.isfinite().all()
        assert g.abs().max() < 1e3
        if name in ("kernel", "pkt"):
            assert (g[(x == 0).all(1)] == 0).all()


@each
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    loss, _ = LOSSES[name]
    s, t = normal(19, 16, 1024, scale=3.0).relu(), normal(20, 16, 1024, scale=3.0).relu()
    truth, exact = loss(s, t).item(), gradients(loss, s, t)
    half = loss(s.to(dtype), t.to(dtype))
    leaves = [x.float().requires_grad_() for x in (s, t)]
    with torch.autocast("cpu", dtype=dtype):
        auto = loss(*leaves)
    auto_gradients = torch.autograd.grad(auto, leaves)
    assert half.dtype == auto.dtype == torch.float32
    assert half.item() == pytest.approx(truth, rel=1e-2)
    assert auto.item() == pytest.approx(truth, rel=1e-4)
    for g, a, e in zip(gradients(loss, s.to(dtype), t.to(dtype)), auto_gradients, exact, strict=True):
        assert g.dtype == dtype
        assert a.norm().item() == pytest.approx(e.norm().item(), rel=1e-4)
    upcast = gradients(loss, s.to(dtype).float(), t.to(dtype).float())
    for g, e in zip(upcast, exact, strict=True):
        largest_may_change = name == "edges"
        assert g.norm().item() == pytest.approx(e.norm().item(), rel=3e-2 if largest_may_change else 1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_similarities_of_maps_in_half_precision(dtype: torch.dtype) -> None:
    s, t = normal(21, 16, 64, 16, 16, scale=3.0).relu(), normal(22, 16, 64, 16, 16, scale=3.0).relu()
    truth, (exact, _) = similarity_preserving(s, t).item(), gradients(similarity_preserving, s, t)
    half = similarity_preserving(s.to(dtype), t.to(dtype))
    with torch.autocast("cpu", dtype=dtype):
        auto = similarity_preserving(s.float(), t.float())
    assert half.item() == pytest.approx(truth, rel=1e-2)
    assert auto.item() == pytest.approx(truth, rel=1e-2)
    (rounded, _) = gradients(similarity_preserving, s.to(dtype).float(), t.to(dtype).float())
    assert rounded.norm().item() == pytest.approx(exact.norm().item(), rel=1e-2)


def test_similarities_of_any_layout() -> None:
    s, t = normal(23, 4, 6, 5, 3), normal(24, 4, 8, 2, 7)
    value = similarity_preserving(s, t)
    last = torch.channels_last
    torch.testing.assert_close(similarity_preserving(s.to(memory_format=last), t.to(memory_format=last)), value)
    torch.testing.assert_close(similarity_preserving(s.flatten(1), t.flatten(2)), value)
    torch.testing.assert_close(similarity_preserving(s.transpose(2, 3), t), value)
    torch.testing.assert_close(irg_edges(s.to(memory_format=last)), irg_edges(s.flatten(1)))


def test_kernel_series_tends_to_the_gaussian_kernel() -> None:
    s, t = unit_rows(normal(25, 6, 4)), unit_rows(normal(26, 6, 5))
    exact = (
        (torch.exp(-0.4 * torch.cdist(s, s).square()) - torch.exp(-0.4 * torch.cdist(t, t).square())).square().mean()
    )
    torch.testing.assert_close(kernel_congruence(s, t, gamma=0.4, order=30), exact)


def test_pkt_keeps_its_digits_where_student_and_teacher_are_close() -> None:
    t = normal(27, 64, 128).relu()
    s = t + 1e-3 * normal(28, 64, 128)
    value = probabilistic_transfer(s.float(), t.float()).item()
    assert value == pytest.approx(probabilistic_transfer(s, t).item(), rel=1e-2)


def test_pkt_of_opposite_embeddings() -> None:
    s, t = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 1e-3]])
    for a, b in ((s, t), (t, s)):
        truth = oracles.probabilistic_transfer(a.double().numpy(), b.double().numpy())
        assert probabilistic_transfer(a, b).item() == pytest.approx(truth, rel=1e-2)
        assert all(g.isfinite().all() for g in gradients(probabilistic_transfer, a, b))


def test_pkt_with_another_eps() -> None:
    s, t = normal(29, 5, 3), normal(30, 5, 3)
    value = probabilistic_transfer(s, t, eps=1e-2)
    assert value.item() == pytest.approx(oracles.probabilistic_transfer(s.numpy(), t.numpy(), eps=1e-2), rel=1e-10)


@pytest.mark.parametrize("channels", [(4, 4), (4, 8), (6, 3), (3, 7)])
def test_irg_transformation_equals_the_oracle(channels: tuple[int, int]) -> None:
    a, b = normal(31, 5, channels[0], 6, 4), normal(32, 5, channels[1], 6, 4)
    truth = torch.from_numpy(oracles.irg_transformation(a.numpy(), b.numpy()))
    torch.testing.assert_close(irg_transformation(a, b), truth)
    torch.testing.assert_close(irg_transformation(1e20 * a.float(), 1e20 * b.float()), truth.float())
    larger = a.repeat_interleave(2, dim=2).repeat_interleave(3, dim=3)
    torch.testing.assert_close(irg_transformation(larger, b), truth)
    torch.testing.assert_close(irg_transformation(a.to(memory_format=torch.channels_last), b), truth)
    assert torch.autograd.gradcheck(irg_transformation, (a[:3].requires_grad_(), b[:3].requires_grad_()))


def test_irg_of_equal_samples_and_of_one() -> None:
    same = normal(33, 1, 4, 3, 3).expand(5, -1, -1, -1).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(irg_edges(same).sum() + irg_transformation(same, same).sum(), same)
    assert (irg_edges(same) == 0).all()
    assert (irg_transformation(same, same) == 0).all()
    assert (gradient == 0).all()
    assert irg_edges(same[:1]).tolist() == [[0.0]]
    assert irg_transformation(same[:1], same[:1] + 1.0).tolist() == [1.0]


def test_irg_edges_of_offset_features_keep_their_digits() -> None:
    x = normal(34, 16, 64)
    torch.testing.assert_close(irg_edges((x + 1000.0).float()).double(), irg_edges(x), rtol=1e-3, atol=1e-4)
    offset = (x + 1000.0).float()
    torch.testing.assert_close(irg_edges(offset).double(), irg_edges(offset.double()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("order", [1, 2])
def test_unit_rows(order: int) -> None:
    x = normal(35, 5, 4)
    torch.testing.assert_close(unit_rows(x, order=order), functional.normalize(x, p=order, dim=1))
    x[1] = 0.0
    assert (unit_rows(x)[1] == 0).all()
    assert torch.autograd.gradcheck(lambda y: unit_rows(y, order=order), normal(36, 3, 4).requires_grad_())
    for scale in (1e-40, 1e-30, 1e30, 1e37):
        torch.testing.assert_close(unit_rows(scale * x.float()), unit_rows(x).float(), rtol=1e-3, atol=1e-3)


def test_rkd_of_unit_rows_does_not_depend_on_lengths() -> None:
    s, t, lengths = normal(37, 6, 4), normal(38, 6, 4), normal(39, 6, 1).exp()
    for loss in (rkd_distance, rkd_angle):
        torch.testing.assert_close(loss(unit_rows(lengths * s), t), loss(unit_rows(s), t))


@pytest.mark.parametrize("sizes", [((4, 4), (4, 4)), ((6, 4), (3, 2)), ((5, 3), (2, 7)), ((1, 1), (4, 4))])
def test_fsp_of_columns_equals_the_oracle(sizes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    student = normal(40, 3, 4, *sizes[0]), normal(41, 3, 5, *sizes[1])
    teacher = normal(42, 3, 4, 8, 6), normal(43, 3, 5, 4, 3)
    arrays = [tuple(x.numpy() for x in pair) for pair in (student, teacher)]
    value = fsp(student, teacher, pooling="max", distance="column_norms")
    assert value.item() == pytest.approx(oracles.fsp_of_columns(*arrays), rel=1e-10)


def test_fsp_of_columns_without_a_gap() -> None:
    s, t = (normal(44, 3, 4, 4, 4), normal(45, 3, 5, 4, 4)), (normal(46, 3, 4, 2, 2), normal(47, 3, 5, 2, 2))
    s[1][:, 2] = t[1][:, 2] = 0.0

    def loss(*x: Tensor) -> Tensor:
        return fsp((x[0], x[1]), (x[2], x[3]), pooling="max", distance="column_norms")

    assert torch.autograd.gradcheck(loss, [x.clone().requires_grad_() for x in (s[0], normal(48, 3, 5, 4, 4), *t)])
    assert all(g.isfinite().all() for g in gradients(loss, *s, *t))
    assert all((g == 0).all() for g in gradients(loss, *s, *s))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        auto = loss(*(x.float() for x in (*s, *t)))
    assert auto.item() == pytest.approx(loss(*s, *t).item(), rel=1e-5)
