"""Correlations of outputs: between samples, and between classes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from kdschemes.config.losses import relation as config
from kdschemes.losses.logit_correlation import batch_correlation, class_correlation
from tests.losses.cases import Flags, LogitCase, Reference
from tests.losses.formulas import Array, softmax
from tests.losses.inputs import logits


def correlations(logits: Array, temperature: float) -> tuple[Array, Array]:
    """Products of every two samples' and of every two classes' softened probabilities."""
    p = np.stack([softmax(z / temperature) for z in logits])
    n, c = p.shape
    samples = np.array([[math.fsum(p[i] * p[j]) for j in range(n)] for i in range(n)])
    classes = np.array([[math.fsum(p[:, i] * p[:, j]) for j in range(c)] for i in range(c)])
    return samples, classes


def formula_of_samples(student: Array, teacher: Array, *, temperature: float, keep: Array | None = None) -> float:
    squares = (correlations(student, temperature)[0] - correlations(teacher, temperature)[0]) ** 2
    return float((squares if keep is None else squares[keep]).sum() / len(student))


def formula_of_classes(student: Array, teacher: Array, *, temperature: float, keep: Array | None = None) -> float:
    squares = (correlations(student, temperature)[1] - correlations(teacher, temperature)[1]) ** 2
    return float((squares if keep is None else squares[keep]).sum() / student.shape[1])


CASES = {
    "batch_correlation": LogitCase(
        lambda z, v, y: batch_correlation(z, v, temperature=2.0), by_sample=False, multiplies_matrices=True
    ),
    "class_correlation": LogitCase(
        lambda z, v, y: class_correlation(z, v, temperature=2.0), by_sample=False, multiplies_matrices=True
    ),
}
OPTIONS = [
    config.BatchCorrelation(temperature=2.0),
    config.BatchCorrelation(standardize=True),
    config.ClassCorrelation(temperature=2.0),
    config.ClassCorrelation(standardize=True),
]
FLAGS = Flags(vectors=True)
REFERENCES: dict[str, Reference] = {
    "MLKD_bc": lambda x, p: batch_correlation(x["s"], x["t"], temperature=float(p["T"])),
    "MLKD_cc": lambda x, p: class_correlation(x["s"], x["t"], temperature=float(p["T"])),
}


SIZES = pytest.mark.parametrize(("n", "c"), [(6, 10), (1, 5), (7, 2), (4, 100), (9, 3)])


@SIZES
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_values_equal_the_formulas(n: int, c: int, scale: float, temperature: float) -> None:
    z, v = logits(13, n, c, scale), logits(14, n, c, scale)
    arrays = z.numpy(), v.numpy()
    for ours, theirs, size in (
        (batch_correlation, formula_of_samples, n),
        (class_correlation, formula_of_classes, c),
    ):
        value = ours(z, v, temperature=temperature)
        assert value.item() == pytest.approx(theirs(*arrays, temperature=temperature), rel=1e-10, abs=1e-25)
        keep = torch.arange(size) % 2 == 0
        kept = ours(z, v, temperature=temperature, keep=keep)
        truth = theirs(*arrays, temperature=temperature, keep=keep.numpy())
        assert kept.item() == pytest.approx(truth, rel=1e-10, abs=1e-25)
        rest = ours(z, v, temperature=temperature, keep=~keep)
        torch.testing.assert_close(kept + rest, value)


@pytest.mark.parametrize("loss", [batch_correlation, class_correlation])
def test_close_outputs_lose_no_digits(loss: Callable[..., Tensor]) -> None:
    """The difference of two float32 Gram matrices would be wrong by more than a percent."""
    v = logits(15, 8, 10).float()
    z = v + 1e-4 * logits(16, 8, 10).float()
    truth = loss(z.double(), v.double(), temperature=4.0).item()
    assert loss(z, v, temperature=4.0).item() == pytest.approx(truth, rel=1e-2)
