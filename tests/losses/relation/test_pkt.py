"""Probabilistic knowledge transfer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from kdschemes.config.losses import relation as config
from kdschemes.losses.relation.pkt import probabilistic_transfer
from tests.losses.cases import Flags, Inputs, Parameters, Reference, RowCase
from tests.losses.formulas import Array, dot, length
from tests.losses.inputs import gradients_at, normal
from tests.losses.stubs import BIG, SMALL, build, output, value_of


def formula(student: Array, teacher: Array, *, eps: float = 1e-7) -> float:
    n = len(student)

    def neighbors(x: Array) -> Array:
        units = [row / (length(row) + eps) for row in x]
        kernel = np.array([[(dot(a, b) + 1) / 2 for b in units] for a in units])
        return kernel / kernel.sum(axis=1, keepdims=True)

    q, p = neighbors(student), neighbors(teacher)
    return math.fsum(p[i, j] * math.log((p[i, j] + eps) / (q[i, j] + eps)) for i in range(n) for j in range(n)) / n**2


CASES = {"pkt": RowCase(probabilistic_transfer, formula, flat_at_zero_rows=True)}
OPTIONS = [config.PKT(stages="all", eps=1e-2)]
FLAGS = Flags(vectors=True, zero_of_one_sample=True)


def neighborhoods(x: Inputs, p: Parameters) -> Tensor:
    return probabilistic_transfer(x["s"], x["t"])


REFERENCES: dict[str, Reference] = {
    "PKT.RepDistiller": neighborhoods,
    "PKT.mdistiller": neighborhoods,
    "PKT.original": neighborhoods,
    "PKT.torchdistill": neighborhoods,
}


@pytest.mark.parametrize("scale", [1e-3, 1e10, 1e18, 1e30])
def test_large_features(scale: float) -> None:
    s, t = normal(13, 6, 64), normal(14, 6, 64)
    value = probabilistic_transfer(scale * s.float(), t.float())
    assert value.item() == pytest.approx(probabilistic_transfer(s, t).item(), rel=1e-3)
    assert all(g.isfinite().all() for g in gradients_at(probabilistic_transfer, scale * s.float(), t.float()))


def test_close_embeddings_lose_no_digits() -> None:
    t = normal(27, 64, 128).relu()
    s = t + 1e-3 * normal(28, 64, 128)
    value = probabilistic_transfer(s.float(), t.float()).item()
    assert value == pytest.approx(probabilistic_transfer(s, t).item(), rel=1e-2)


def test_opposite_embeddings() -> None:
    s, t = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 1e-3]])
    for a, b in ((s, t), (t, s)):
        truth = formula(a.double().numpy(), b.double().numpy())
        assert probabilistic_transfer(a, b).item() == pytest.approx(truth, rel=1e-2)
        assert all(g.isfinite().all() for g in gradients_at(probabilistic_transfer, a, b))


def test_another_eps() -> None:
    s, t = normal(29, 5, 3), normal(30, 5, 3)
    value = probabilistic_transfer(s, t, eps=1e-2)
    assert value.item() == pytest.approx(formula(s.numpy(), t.numpy(), eps=1e-2), rel=1e-10)


def test_the_modules_value_is_that_of_the_function() -> None:
    s, t = output(SMALL, 0), output(BIG, 1)
    ours, theirs = s.features["block3"].mean((2, 3)), t.features["layer3"].mean((2, 3))
    torch.testing.assert_close(value_of(build(config.PKT()), s, t), probabilistic_transfer(ours, theirs))
    two = value_of(build(config.PKT(stages=["block1:layer2", "block3:layer3"], eps=1e-2)), s, t)
    means = s.features["block1"].mean((2, 3)), t.features["layer2"].mean((2, 3))
    truth = sum(probabilistic_transfer(a, b, eps=1e-2) for a, b in (means, (ours, theirs)))
    torch.testing.assert_close(two, truth)
