"""Neuron selectivity transfer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from kdschemes.config.losses import feature as config
from kdschemes.losses.feature.nst import nst
from tests.losses.cases import Flags, Inputs, MapCase, Parameters, Reference
from tests.losses.formulas import Array, to_smaller
from tests.losses.inputs import normal
from tests.losses.stubs import (
    BIG,
    PAIRS,
    SMALL,
    build,
    output,
    value_of,
)


def formula(student: Array, teacher: Array) -> float:
    """Three means of the kernel over all pairs of channels."""
    total = 0.0
    for s, t in zip(*to_smaller(student, teacher), strict=True):
        ours, theirs = ([c.ravel() / (np.linalg.norm(c) or 1.0) for c in maps] for maps in (s, t))
        for first, second, sign in ((ours, ours, 1), (theirs, theirs, 1), (ours, theirs, -2)):
            total += sign * math.fsum(float(a @ b) ** 2 for a in first for b in second) / (len(first) * len(second))
    return total / len(student)


CASES = {"nst": MapCase(nst, formula, teacher=4, scale_free=True, sizes_of_gradcheck=((3, 2), (4, 3)))}
FLAGS = Flags(needs_positions=True)


def channels(x: Inputs, p: Parameters) -> Tensor:
    return nst(x["s"], x["t"])


REFERENCES: dict[str, Reference] = {"NST.RepDistiller": channels, "NST.mdistiller": channels}


@pytest.mark.parametrize("size", [(2, 3), (3, 3), (5, 5), (2, 11)])
@pytest.mark.parametrize("channels", [(1, 1), (5, 5), (2, 7), (7, 2), (9, 8)])
def test_both_ways_to_compute_it_equal_the_formula(size: tuple[int, int], channels: tuple[int, int]) -> None:
    s, t = (normal(seed, 2, c, *size) for seed, c in enumerate(channels))
    assert nst(s, t).item() == pytest.approx(formula(s.numpy(), t.numpy()), rel=1e-10, abs=1e-14)


@pytest.mark.parametrize("size", [(3, 3), (6, 6)])
def test_channels_are_a_set_without_scale_or_sign(size: tuple[int, int]) -> None:
    s, t = normal(0, 3, 6, *size), normal(1, 3, 4, *size)
    value = nst(s, t)
    torch.testing.assert_close(nst(s.flip(1), t), value)
    torch.testing.assert_close(nst(s, t * normal(2, 3, 4, 1, 1)), value)
    torch.testing.assert_close(nst(s.repeat(1, 2, 1, 1), t), value)
    torch.testing.assert_close(nst(t, s), value)
    torch.testing.assert_close(nst(s.flip(2, 3), t.flip(2, 3)), value)
    assert 0 <= nst(s, s.flip(1)) < 1e-14


@pytest.mark.parametrize(("size", "channels"), [((4, 4), 32), ((16, 16), 8)])
@pytest.mark.parametrize("distance", [1e-1, 1e-2, 1e-3, 1e-4])
def test_close_maps_keep_their_digits_in_float32(size: tuple[int, int], channels: int, distance: float) -> None:
    t = normal(0, 4, channels, *size).relu().float()
    s = t + distance * normal(1, 4, channels, *size).float()
    ours, exact = s.clone().requires_grad_(), s.double().requires_grad_()
    value, truth = nst(ours, t), nst(exact, t.double())
    assert value.item() == pytest.approx(truth.item(), rel=3e-6 / distance)
    (found,), (expected,) = torch.autograd.grad(value, ours), torch.autograd.grad(truth, exact)
    assert (found - expected).norm() / expected.norm() < 1e-5 / distance


def test_the_value_is_never_negative() -> None:
    for seed in range(20):
        t = normal(seed, 2, 5, 7, 7).float()
        order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
        assert 0 <= nst(t[:, order], t) < 1e-6


def test_no_saved_tensor_is_larger_than_the_maps() -> None:
    """The kernel of all pairs of channels by positions would be 512 MiB per sample here."""
    s, t = normal(0, 2, 512, 16, 16).float().requires_grad_(), normal(1, 2, 512, 16, 16).float()
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        nst(s, t).backward()
    assert max(kept) <= s.numel()


def test_a_channel_of_zeros_counts_and_gets_no_gradient() -> None:
    s, t = normal(0, 2, 4, 5, 5), normal(1, 2, 3, 5, 5)
    s[:, 1] = 0.0
    s.requires_grad_()
    value = nst(s, t)
    assert value.item() == pytest.approx(formula(s.detach().numpy(), t.numpy()), rel=1e-12)
    (gradient,) = torch.autograd.grad(value, s)
    assert gradient[:, 1].abs().max() == 0
    assert gradient[:, 0].abs().max() > 0


def test_the_module_is_the_sum_over_the_pairs() -> None:
    s, t = output(SMALL, 2), output(BIG, 3)
    expected = sum(nst(s.features[a], t.features[b]) for a, b in PAIRS)
    torch.testing.assert_close(value_of(build(config.NST()), s, t), expected)
