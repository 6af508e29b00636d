from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdschemes.evaluation.metrics import HeadMetrics


def reference(logits, labels, teacher=None, bins=15):
    """The same metrics by explicit loops over samples, in numpy float64."""
    z = logits.double().numpy()
    y = labels.numpy()
    n, classes = z.shape
    top1 = top5 = nll = agreement = kl = 0.0
    members = [[] for _ in range(bins)]
    for i in range(n):
        p = np.exp(z[i] - z[i].max()) / np.exp(z[i] - z[i].max()).sum()
        order = sorted(range(classes), key=lambda c: (-z[i, c], c))
        top1 += order[0] == y[i]
        top5 += y[i] in order[:5]
        nll -= np.log(p[y[i]])
        for b in range(bins):
            if b / bins < p.max() <= (b + 1) / bins:
                members[b].append((float(order[0] == y[i]), p.max()))
        if teacher is not None:
            v = teacher[i].double().numpy()
            q = np.exp(v - v.max()) / np.exp(v - v.max()).sum()
            agreement += order[0] == int(np.argmax(v))
            kl += sum(q[c] * (np.log(q[c]) - np.log(p[c])) for c in range(classes))
    ece = sum(len(m) / n * abs(np.mean([a for a, _ in m]) - np.mean([c for _, c in m])) for m in members if m)
    result = {"top1": 100 * top1 / n, "top5": 100 * top5 / n, "nll": nll / n, "ece": 100 * ece}
    predicted, recalls, f1 = z.argmax(axis=1), [], []
    for c in sorted({*y.tolist(), *predicted.tolist()}):
        right = int(((y == c) & (predicted == c)).sum())
        f1.append(2 * right / int((y == c).sum() + (predicted == c).sum()))
        recalls += [right / int((y == c).sum())] if c in y else []
    result |= {"balanced_accuracy": 100 * np.mean(recalls), "macro_f1": 100 * np.mean(f1)}
    if teacher is not None:
        result |= {"agreement": 100 * agreement / n, "kl": kl / n}
    return result


def sample(n=301, classes=10, scale=3.0, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=g)
    logits = torch.randn(n, classes, generator=g) * scale
    logits[torch.arange(n), labels] += scale * (torch.rand(n, generator=g) > 0.4)
    return logits.to(dtype), labels, (torch.randn(n, classes, generator=g) * scale).to(dtype)


def measure(logits, labels, teacher=None):
    metrics = HeadMetrics()
    metrics.update(logits, labels, teacher)
    return metrics.result()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("classes", [3, 5, 10, 100])
@pytest.mark.parametrize("with_teacher", [False, True])
def test_equals_explicit_loops(dtype, classes, with_teacher):
    logits, labels, teacher = sample(classes=classes, dtype=dtype)
    teacher = teacher if with_teacher else None
    expected = reference(logits, labels, teacher)
    found = measure(logits, labels, teacher)
    assert list(found) == list(expected)
    assert found == pytest.approx(expected, rel=1e-10, abs=1e-10)
    assert (found["top5"] == 100.0) == (classes <= 5)


def test_batches_and_processes_add_up():
    logits, labels, teacher = sample()
    whole = measure(logits, labels, teacher)
    ranks = [HeadMetrics(), HeadMetrics()]
    for i, part in enumerate(torch.arange(len(labels)).split(37)):
        ranks[i % 2].update(logits[part], labels[part], teacher[part])
    ranks[0].sums += ranks[1].sums
    assert ranks[0].sums.dtype == torch.float64
    assert ranks[0].result() == pytest.approx(whole, rel=1e-12)


def test_one_large_batch_of_the_same_samples_is_the_mean_not_the_sum():
    logits, labels, teacher = sample(n=64)
    once = measure(logits, labels, teacher)
    twice = measure(logits.repeat(2, 1), labels.repeat(2), teacher.repeat(2, 1))
    assert twice == pytest.approx(once, rel=1e-12)


def test_ties_are_ranked_by_class_number():
    logits = torch.zeros(8, 8)
    found = measure(logits, torch.arange(8), logits)
    assert found["top1"] == 100 / 8
    assert found["top5"] == 500 / 8
    assert found["agreement"] == 100
    assert found["top1"] == 100 * (logits.argmax(1) == torch.arange(8)).double().mean().item()


def test_perfect_predictor():
    labels = torch.arange(10)
    logits = torch.full((10, 10), -1e4).fill_diagonal_(1e4)
    found = measure(logits, labels, logits)
    accuracies = dict.fromkeys(("top1", "top5", "balanced_accuracy", "macro_f1", "agreement"), 100)
    assert found == accuracies | {"nll": 0, "ece": 0, "kl": 0}


@pytest.mark.parametrize("classes", [4, 5, 10, 15])
def test_uniform_predictor(classes):
    labels = torch.arange(classes).repeat(6)
    found = measure(torch.zeros(len(labels), classes), labels)
    assert found["nll"] == pytest.approx(math.log(classes))
    assert found["top1"] == pytest.approx(100 / classes)
    assert found["ece"] == pytest.approx(0, abs=1e-9)


def test_surely_wrong_predictor_has_calibration_error_one():
    logits = torch.full((10, 10), -50.0).fill_diagonal_(50.0)
    found = measure(logits, (torch.arange(10) + 1) % 10)
    assert found["top1"] == 0
    assert found["ece"] == pytest.approx(100)
    assert found["nll"] == pytest.approx(100)


def test_known_calibration_error():
    # four samples at p = 0.9, three of them right; one sample at p = 0.5, right
    sure, unsure = math.log(9), 0.0
    logits = torch.tensor([[sure, 0.0]] * 4 + [[unsure, 0.0]], dtype=torch.float64)
    found = measure(logits, torch.tensor([0, 0, 0, 1, 0]))
    assert found["ece"] == pytest.approx(100 * (4 / 5 * abs(0.75 - 0.9) + 1 / 5 * 0.5))


def test_minus_infinity_is_probability_zero():
    inf = math.inf
    head = torch.tensor([[0.0, 0.0, -inf], [0.0, 1.0, 2.0]])
    teacher = torch.tensor([[0.0, 1.0, -inf], [1.0, 0.0, -inf]])
    found = measure(head, torch.tensor([0, 1]), teacher)
    finite = measure(head.clamp(min=-1e5), torch.tensor([0, 1]), teacher.clamp(min=-1e5))
    assert found == pytest.approx(finite, rel=1e-9)
    assert all(math.isfinite(value) for value in found.values())


def test_probability_zero_where_the_label_or_the_teacher_has_some_is_infinite():
    head = torch.tensor([[0.0, -math.inf]])
    found = measure(head, torch.tensor([1]), torch.zeros(1, 2))
    assert found["nll"] == math.inf
    assert found["kl"] == math.inf
    assert found["top1"] == 0


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_extreme_logits_stay_finite(scale):
    logits, labels, teacher = sample(scale=1.0)
    found = measure(logits * scale, labels, teacher * scale)
    assert all(math.isfinite(value) for value in found.values())
    if scale > 1:
        assert found["top1"] == measure(logits, labels)["top1"]
        assert found["ece"] == pytest.approx(100 - found["top1"])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_diverged_head_is_wrong_and_shows_it(bad):
    logits = torch.full((6, 4), bad)
    found = measure(logits, torch.arange(6) % 4, torch.zeros(6, 4))
    assert found["top1"] == found["top5"] == found["agreement"] == 0
    assert all(math.isnan(found[key]) for key in ("nll", "ece", "kl"))


def test_one_bad_sample_counts_as_wrong():
    logits, labels, _ = sample(n=20, scale=0.1)
    logits[torch.arange(20), labels] = 10
    logits[3, 0] = math.nan
    assert measure(logits, labels)["top1"] == 95


def test_a_diverged_teacher_shows_it():
    found = measure(torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64), torch.full((3, 4), math.nan))
    assert math.isnan(found["kl"])
    assert found["agreement"] == 0
    assert found["top1"] == 100


def test_kl_is_from_the_teacher_to_the_head():
    q, p = torch.tensor([[0.9, 0.1]]).double(), torch.tensor([[0.5, 0.5]]).double()
    found = measure(p.log(), torch.tensor([0]), q.log())
    assert found["kl"] == pytest.approx(0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5))


def test_no_gradient_is_kept():
    metrics = HeadMetrics()
    metrics.update(torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, 2, 0], dtype=torch.int32))
    assert not metrics.sums.requires_grad


def test_no_samples():
    with pytest.raises(AssertionError, match="no samples"):
        HeadMetrics().result()


def test_a_teacher_for_some_batches_only():
    logits, labels, teacher = sample(n=8)
    metrics = HeadMetrics()
    metrics.update(logits, labels, teacher)
    metrics.update(logits, labels)
    with pytest.raises(AssertionError, match="teacher logits"):
        metrics.result()


def test_a_class_without_samples_counts_only_where_it_is_predicted():
    logits = torch.eye(4)[torch.tensor([0, 0, 1, 1, 1, 3])] * 9
    found = measure(logits, torch.tensor([0, 0, 0, 1, 1, 1]))
    assert found["balanced_accuracy"] == pytest.approx(100 * (2 / 3 + 2 / 3) / 2)
    assert found["macro_f1"] == pytest.approx(100 * (4 / 5 + 4 / 6 + 0) / 3)


def test_a_sample_that_is_not_finite_is_predicted_as_no_class():
    logits = torch.tensor([[5.0, 0.0], [math.nan, 0.0], [0.0, 5.0]])
    found = measure(logits, torch.tensor([0, 0, 1]))
    assert found["balanced_accuracy"] == pytest.approx(75)
    assert found["macro_f1"] == pytest.approx(100 * (2 / 3 + 1) / 2)
