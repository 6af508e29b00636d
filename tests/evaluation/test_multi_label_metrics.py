"""Metrics of images with several labels."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score
from torch import Tensor

from kdschemes.evaluation.metrics import MultiLabelMetrics, average_precision


def sample(n: int = 97, classes: int = 7, *, rounded: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    labels = (torch.rand(n, classes, generator=generator) < 0.3).long()
    logits = torch.randn(n, classes, generator=generator) + labels
    teacher = torch.randn(n, classes, generator=generator) + 2 * labels
    return (logits.round() if rounded else logits), labels, teacher


def metrics(logits: Tensor, labels: Tensor, teacher: Tensor | None = None, batch: int = 32) -> dict[str, float]:
    of = MultiLabelMetrics()
    for at in range(0, len(logits), batch):
        rows = slice(at, at + batch)
        of.update(logits[rows], labels[rows], None if teacher is None else teacher[rows])
    of.sum_over_processes()
    return of.result()


@pytest.mark.parametrize("rounded", [False, True])
def test_precision_and_f1_equal_scikit_learns_on_equal_logits_too(rounded: bool) -> None:
    z, y, _ = sample(rounded=rounded)
    found, decided = metrics(z, y), (z > 0).numpy()
    assert found["map"] == pytest.approx(100 * average_precision_score(y.numpy(), z.numpy(), average="macro"))
    for kind in ("micro", "macro"):
        assert found[f"{kind}_f1"] == pytest.approx(100 * f1_score(y.numpy(), decided, average=kind))


def test_average_precision_by_hand() -> None:
    z = torch.tensor([[3.0, 0.0], [2.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    y = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    first, second = average_precision(z, y).tolist()
    assert first == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert math.isnan(second)


def test_the_other_metrics_equal_loops() -> None:
    z, y, v = sample()
    found = metrics(z, y, v)
    nll = kl = agree = 0.0
    bins: list[list[float]] = [[] for _ in range(15)]
    for a, label, b in zip(z.double().flatten(), y.flatten(), v.double().flatten(), strict=True):
        p, q = (float(torch.sigmoid(x)) for x in (a, b))
        nll -= math.log(p if label else 1 - p)
        kl += q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
        agree += (a > 0) == (b > 0)
        bins[next(k for k in range(15) if k / 15 < p <= (k + 1) / 15)].append(float(label) - p)
    assert found["nll"] == pytest.approx(nll / len(z))
    assert found["kl"] == pytest.approx(kl / len(z))
    assert found["agreement"] == pytest.approx(100 * float(agree) / z.numel())
    assert found["ece"] == pytest.approx(100 * sum(abs(math.fsum(of)) for of in bins) / z.numel())


def test_classes_without_labels_and_broken_logits() -> None:
    z, y, _ = sample()
    y[:, 0] = 0
    assert metrics(z, y)["map"] == pytest.approx(metrics(z[:, 1:], y[:, 1:])["map"])
    z[0, 1] = float("nan")
    found = metrics(z, y)
    assert math.isnan(found["nll"])
    assert math.isnan(found["ece"])
    assert 0 < found["map"] < 100


def test_an_empty_batch_changes_nothing() -> None:
    z, y, v = sample()
    of = MultiLabelMetrics()
    for rows in (slice(0, 0), slice(0, 97), slice(97, 97)):
        of.update(z[rows], y[rows], v[rows])
    of.sum_over_processes()
    assert of.result() == metrics(z, y, v)
