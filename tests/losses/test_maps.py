"""What all losses between maps share: the oracle, sizes and layouts, precision, gradients, and zeros."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from kdschemes.losses.feature.ab import ab
from kdschemes.losses.feature.at import attention_transfer
from kdschemes.losses.feature.ft import ft
from kdschemes.losses.feature.nst import nst
from kdschemes.losses.feature.ofd import ofd, ofd_margin
from kdschemes.losses.feature.reviewkd import hcl
from kdschemes.losses.feature.vid import vid
from tests.losses import oracles_maps as oracles

WEIGHT = torch.linspace(-1.5, 2.0, 6, dtype=torch.float64)
BIAS = torch.linspace(0.8, -0.7, 6, dtype=torch.float64)
RAW = torch.tensor([-3.0, 0.0, 0.5, 4.99, 30.0, 2.0], dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """A loss, its oracle, and what its formula allows.

    `teacher` is the number of the teacher's channels (the student has 6), `teaches` says whether the teacher gets a
    gradient, `sized` whether maps of different size can be compared, `scale_free` whether a factor changes nothing.
    """

    ours: Callable[[Tensor, Tensor], Tensor]
    oracle: Callable[[Any, Any], float]
    teacher: int = 6
    teaches: bool = True
    sized: bool = True
    scale_free: bool = False


MARGIN = ofd_margin(WEIGHT, BIAS)
CASES = {
    "at": Case(attention_transfer, oracles.attention_transfer, teacher=4, scale_free=True),
    "at, paper": Case(
        lambda s, t: attention_transfer(s, t, variant="paper"),
        lambda s, t: oracles.attention_transfer(s, t, variant="paper"),
        teacher=4,
        scale_free=True,
    ),
    "at, power 3, eps": Case(
        lambda s, t: attention_transfer(s, t, power=3.0, eps=0.1),
        lambda s, t: oracles.attention_transfer(s, t, power=3.0, eps=0.1),
        teacher=4,
    ),
    "nst": Case(nst, oracles.nst, teacher=4, scale_free=True),
    "ft": Case(ft, lambda s, t: oracles.ft(s, t, variant="attention"), teacher=4, scale_free=True),
    "ft, paper": Case(
        lambda s, t: ft(s, t, variant="paper"), lambda s, t: oracles.ft(s, t, variant="paper"), scale_free=True
    ),
    "ab": Case(lambda s, t: ab(s, t, margin=0.7), lambda s, t: oracles.ab(s, t, margin=0.7), teaches=False),
    "ofd": Case(lambda s, t: ofd(s, t, margin=MARGIN), lambda s, t: oracles.ofd(s, t, margin=MARGIN.numpy())),
    "vid": Case(
        lambda s, t: vid(s, t, raw_variance=RAW.to(torch.promote_types(s.dtype, torch.float32)), eps=1e-3),
        lambda s, t: oracles.vid(s, t, raw_variance=RAW.numpy(), eps=1e-3),
    ),
    "hcl": Case(hcl, oracles.hcl, sized=False),
}
every = pytest.mark.parametrize("name", CASES)


def maps(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(case: Case, n: int = 3, size: tuple[int, int] = (5, 4), seed: int = 0) -> tuple[Tensor, Tensor]:
    return maps(seed, n, 6, *size), maps(seed + 1, n, case.teacher, *size)


def gradients(case: Case, s: Tensor, t: Tensor) -> list[Tensor]:
    inputs = [x.detach().requires_grad_() for x in (s, t)]
    value = case.ours(*inputs)
    return list(torch.autograd.grad(value, inputs[: 1 + case.teaches]))


@every
@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ((1, 2), (1, 2)),
        ((4, 4), (4, 4)),
        ((8, 3), (8, 3)),
        ((3, 9), (3, 9)),
        ((7, 7), (3, 3)),
        ((4, 8), (4, 5)),
        ((9, 3), (4, 7)),
        ((2, 6), (5, 6)),
    ],
)
def test_values_equal_the_oracle(name: str, student: tuple[int, int], teacher: tuple[int, int]) -> None:
    case = CASES[name]
    if student != teacher and not case.sized:
        teacher = student
    for n in (1, 3):
        s, t = maps(1, n, 6, *student), maps(2, n, case.teacher, *teacher)
        expected = case.oracle(s.numpy(), t.numpy())
        assert case.ours(s, t).item() == pytest.approx(expected, rel=1e-10, abs=1e-15)
        one = case.ours(s.float(), t.float())
        assert one.dtype == torch.float32
        assert one.item() == pytest.approx(expected, rel=1e-5, abs=1e-7)


@every
def test_gradients_are_those_of_the_value(name: str) -> None:
    case = CASES[name]
    for size in ((3, 2), (7, 6)) if name == "nst" else ((4, 3),):
        s, t = pair(case, n=2, size=size)
        assert torch.autograd.gradcheck(case.ours, (s.requires_grad_(), t.requires_grad_(case.teaches)))


@every
def test_the_value_is_a_mean_over_the_batch_in_any_layout(name: str) -> None:
    case = CASES[name]
    s, t = pair(case, n=5, size=(6, 6))
    value = case.ours(s, t)
    rows = [case.ours(s[i : i + 1], t[i : i + 1]) for i in range(5)]
    torch.testing.assert_close(torch.stack(rows).mean(), value)
    last = torch.channels_last
    torch.testing.assert_close(case.ours(s.to(memory_format=last), t.to(memory_format=last)), value)
    strided = (x.transpose(2, 3).contiguous().transpose(2, 3) for x in (s, t))
    torch.testing.assert_close(case.ours(*strided), value)
    torch.testing.assert_close(case.ours(s.mT, t.mT), value)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(case.ours(s[order], t[order]), value)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    s, t = (x.to(dtype) for x in pair(case, n=4, size=(8, 8)))
    truth, exact = case.ours(s.double(), t.double()), gradients(case, s.double(), t.double())
    by_dtype = case.ours(s, t), gradients(case, s, t)
    with torch.autocast("cpu", dtype=dtype):
        by_autocast = case.ours(s.float(), t.float()), gradients(case, s.float(), t.float())
    for value, found in (by_dtype, by_autocast):
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(truth.item(), rel=1e-2)
        for gradient, expected in zip(found, exact, strict=True):
            assert gradient.double().norm().item() == pytest.approx(expected.norm().item(), rel=1e-2)
    assert {g.dtype for g in by_dtype[1]} == {dtype}


@every
@pytest.mark.parametrize("who", ["student", "teacher", "both"])
def test_zeros_give_a_finite_value_and_gradient(name: str, who: str) -> None:
    case = CASES[name]
    for n in (1, 3):
        s, t = (x.float() for x in pair(case, n=n, size=(6, 6)))
        s, t = (s if who == "teacher" else 0 * s), (t if who == "student" else 0 * t)
        assert case.ours(s, t).isfinite()
        assert all(g.isfinite().all() for g in gradients(case, s, t))
        one = s.clone()
        one[0, :3] = 0.0
        assert all(g.isfinite().all() for g in gradients(case, one, t))


@every
def test_equal_maps(name: str) -> None:
    case = CASES[name]
    x = maps(3, 3, 6, 5, 4).abs().float()
    if name in ("ab", "vid"):
        return
    assert case.ours(x, x) == 0
    found, *_ = gradients(case, x, x)
    assert found.isfinite().all()
    if not name.startswith("ft"):
        assert found.abs().max() == 0


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.scale_free])
@pytest.mark.parametrize("scale", [1e18, 1e10, 1e-10, 1e-18])
def test_no_scale_overflows_or_vanishes(name: str, scale: float) -> None:
    case = CASES[name]
    s, t = (x.float() for x in pair(case, size=(6, 6)))
    value, (exact, *_) = case.ours(s, t), gradients(case, s, t)
    assert case.ours(scale * s, scale * t).item() == pytest.approx(value.item(), rel=1e-5)
    found, *_ = gradients(case, scale * s, scale * t)
    torch.testing.assert_close(found.double() * scale, exact.double(), rtol=1e-3, atol=1e-7)


def test_where_attention_maps_are_equal_the_un_squared_norm_has_a_gradient_of_zero() -> None:
    s = maps(4, 2, 3, 4, 4)
    t = s.clone()
    t[1] *= -2.0
    found, theirs = gradients(CASES["at, paper"], s, t)
    assert found.abs().max() < 1e-7
    assert theirs.abs().max() < 1e-7
    assert attention_transfer(s, t, variant="paper") < 1e-7


def test_an_eps_belongs_to_the_scale_of_the_features() -> None:
    s, t = maps(5, 2, 3, 4, 4).float(), maps(6, 2, 3, 4, 4).float()
    for scale in (1e-30, 1e-3, 1e30):
        ours = (scale * s).requires_grad_()
        value = attention_transfer(ours, scale * t, eps=1e-6)
        (gradient,) = torch.autograd.grad(value, ours)
        expected = oracles.attention_transfer(scale * s.double().numpy(), scale * t.double().numpy(), eps=1e-6)
        assert value.item() == pytest.approx(expected, rel=1e-4, abs=1e-12)
        assert gradient.isfinite().all()


def test_ft_of_attention_takes_other_channels_and_the_paper_does_not() -> None:
    s, t = maps(7, 2, 3, 4, 4), maps(8, 2, 5, 4, 4)
    assert ft(s, t) > 0
    with pytest.raises(AssertionError, match="against"):
        ft(s, t, variant="paper")


@pytest.mark.parametrize(("height", "width", "levels"), [(8, 8, 3), (4, 4, 2), (4, 9, 2), (9, 2, 1), (1, 7, 0)])
def test_hcl_takes_the_levels_that_are_smaller_than_the_map(height: int, width: int, levels: int) -> None:
    offset = torch.full((1, 1, height, width), 3.0)
    assert hcl(offset, 0 * offset).item() == pytest.approx(9.0)
    speckle = torch.zeros(1, 1, height, width)
    speckle[..., 0, 0], total = 1.0, 2 - 0.5**levels
    s = maps(9, 2, 3, height, width)
    assert hcl(s, 0 * s).item() == pytest.approx(oracles.hcl(s.numpy(), 0 * s.numpy()), rel=1e-12)
    assert hcl(speckle, 0 * speckle).item() >= 1 / (height * width) / total
