"""Multi-level distillation: of samples, of the batch's correlations, of the classes' correlations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from kdschemes.config.losses import response as config
from kdschemes.losses.logit_correlation import batch_correlation, class_correlation
from kdschemes.losses.response.kd import kd
from kdschemes.losses.response.mlkd import Masks, confidence_masks, mlkd
from tests.losses import formulas
from tests.losses import test_logit_correlation as correlation
from tests.losses.cases import LogitCase
from tests.losses.formulas import Array, softmax
from tests.losses.inputs import logits


def formula(
    student: Array, teacher: Array, *, temperatures: list[float], levels: tuple[float, float, float], masks: str
) -> float:
    p = np.stack([softmax(v) for v in teacher])
    unsure = p.max(axis=1) <= np.percentile(p.max(axis=1), 50)
    rare = p.sum(axis=0) <= np.percentile(p.sum(axis=0), 50)
    n, total = len(student), 0.0
    for t in temperatures:
        rows = [formulas.kd(student[i : i + 1], teacher[i : i + 1], temperature=t) for i in range(n)]
        if masks == "select":
            instance = sum(row for row, kept in zip(rows, unsure, strict=True) if kept) / n
            batch = correlation.formula_of_samples(student, teacher, temperature=t, keep=unsure)
            classes = correlation.formula_of_classes(student, teacher, temperature=t, keep=rare)
        else:
            shares = (unsure.mean(), rare.mean()) if masks == "share" else (1.0, 1.0)
            instance = shares[0] * sum(rows) / n
            batch = shares[0] * correlation.formula_of_samples(student, teacher, temperature=t)
            classes = shares[1] * correlation.formula_of_classes(student, teacher, temperature=t)
        total += levels[0] * instance + levels[1] * batch + levels[2] * classes
    return float(total)


def levels(student: Tensor, teacher: Tensor, masks: Masks = "share") -> Tensor:
    return mlkd(student, teacher, temperatures=[2.0, 4.0], instance=1.0, batch=2.0, classes=3.0, masks=masks)


CASES = {
    "mlkd": LogitCase(lambda z, v, y: levels(z, v), by_sample=False, multiplies_matrices=True),
    "mlkd-select": LogitCase(lambda z, v, y: levels(z, v, "select"), by_sample=False, multiplies_matrices=True),
    "mlkd-none": LogitCase(lambda z, v, y: levels(z, v, "none"), by_sample=False, multiplies_matrices=True),
}
OPTIONS = [
    config.MLKD(standardize=True),
    config.MLKD(temperatures=[1.0, 3.0], instance=0.5, batch=2.0, classes=3.0, masks="share"),
    config.MLKD(temperatures=[1.0, 3.0], instance=0.5, batch=2.0, classes=3.0, masks="select"),
    config.MLKD(temperatures=[1.0, 3.0], instance=0.5, batch=2.0, classes=3.0, masks="none"),
]


SIZES = pytest.mark.parametrize(("n", "c"), [(6, 10), (1, 5), (7, 2), (4, 100), (9, 3)])


@SIZES
@pytest.mark.parametrize("masks", ["share", "select", "none"])
def test_value_equals_the_formula(n: int, c: int, masks: Masks) -> None:
    z, v = logits(17, n, c, 3.0), logits(18, n, c, 3.0)
    truth = formula(z.numpy(), v.numpy(), temperatures=[2.0, 4.0], levels=(1.0, 2.0, 3.0), masks=masks)
    assert levels(z, v, masks).item() == pytest.approx(truth, rel=1e-10)


def test_each_level_alone_is_a_loss_of_its_own() -> None:
    z, v = logits(19), logits(20)
    only = {"instance": 0.0, "batch": 0.0, "classes": 0.0}
    for name, loss in (("instance", kd), ("batch", batch_correlation), ("classes", class_correlation)):
        value = mlkd(z, v, temperatures=[3.0], **{**only, name: 1.0}, masks="none")
        torch.testing.assert_close(value, loss(z, v, temperature=3.0))


@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_masks_keep_the_less_confident_half(n: int) -> None:
    teacher = logits(21, n, 7, 4.0)
    p = torch.softmax(teacher, 1)
    unsure, rare = confidence_masks(teacher)
    assert unsure.sum() == (n + 1) // 2
    assert rare.sum() == 4
    assert p.amax(1)[unsure].max() <= p.amax(1)[~unsure].min() if n > 1 else unsure.all()
    assert p.sum(0)[rare].max() < p.sum(0)[~rare].min()
    assert all(m.all() for m in confidence_masks(torch.zeros(n, 7)))


def test_the_formulas_median_is_torchs() -> None:
    assert np.percentile(np.array([1.0, 2.0, 4.0, 8.0]), 50) == 3.0 == torch.quantile(torch.tensor([1.0, 2, 4, 8]), 0.5)
