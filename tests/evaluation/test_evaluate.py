"""Evaluation of every head: values by explicit loops, modes restored, the teacher alongside the heads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from kdschemes.config.data import Digits
from kdschemes.core.types import Batch
from kdschemes.data import DataModule, open_data
from kdschemes.evaluation.evaluate import evaluate, evaluation_mode
from tests.losses import oracles
from tests.schemes.cases import DEFAULTS, OFFLINE, build, in_double, random_batch
from tests.schemes.table import VARIANTS

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data() -> DataModule:
    return open_data(Digits(val_fraction=0.05), seed=0, device=CPU)


def batches(data: DataModule, size: int = 25) -> list[Batch]:
    return [in_double(batch) for batch in data.eval_batches("val", batch_size=size, rank=0, world=1)]


def expected(logits: oracles.Array, labels: list[int], teacher: oracles.Array | None) -> dict[str, float]:
    """The metrics by loops over samples."""
    n, bins = len(labels), [[] for _ in range(15)]
    sums = dict.fromkeys(("top1", "top5", "nll", "agreement", "kl"), 0.0)
    for k, label in enumerate(labels):
        log_p = oracles.log_softmax(logits[k])
        ranked = np.argsort(-logits[k], kind="stable").tolist()
        sums["top1"] += 100 * (ranked[0] == label) / n
        sums["top5"] += 100 * (label in ranked[:5]) / n
        sums["nll"] -= log_p[label] / n
        sure = float(np.exp(log_p.max()))
        bins[int(np.ceil(15 * sure)) - 1].append((ranked[0] == label, sure))
        if teacher is not None:
            log_t = oracles.log_softmax(teacher[k])
            sums["agreement"] += 100 * (ranked[0] == int(teacher[k].argmax())) / n
            sums["kl"] += float((np.exp(log_t) * (log_t - log_p)).sum()) / n
    ece = sum(abs(sum(hit for hit, _ in bin_) - sum(sure for _, sure in bin_)) for bin_ in bins if bin_)
    predicted, recalls, f1 = logits.argmax(axis=1).tolist(), [], []
    for c in sorted({*labels, *predicted}):
        right = sum(p == label == c for p, label in zip(predicted, labels, strict=True))
        recalls += [right / labels.count(c)] if c in labels else []
        f1.append(2 * right / (labels.count(c) + predicted.count(c)))
    by_class = {"balanced_accuracy": 100 * float(np.mean(recalls)), "macro_f1": 100 * float(np.mean(f1))}
    kept = ("top1", "top5", "nll") + (("agreement", "kl") if teacher is not None else ())
    return {key: sums[key] for key in kept} | {"ece": 100 * float(ece) / n} | by_class


OF_EACH_KIND = ("supervised-ce", "offline-kd", "offline-takd", "online-dml", "online-one", "self-byot", "self-pskd")


@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(name, marks=[pytest.mark.exhaustive] * (name not in OF_EACH_KIND)) for name in DEFAULTS),
        *("offline-kd-two-teachers", "self-byot-ema"),
    ],
)
def test_metrics_of_every_head_equal_loops_over_samples(name: str, data: DataModule) -> None:
    scheme = build(*VARIANTS[name])
    metrics = evaluate(scheme, batches(data), CPU)
    heads = list(dict.fromkeys([*scheme.heads, *([scheme.teacher] if scheme.teacher else [])]))
    assert list(metrics) == heads
    scheme.eval()
    (whole,) = batches(data, size=1000)
    with torch.no_grad():
        logits = {head: scheme.predict(whole, [head])[head].logits.numpy() for head in heads}
    teacher = logits[scheme.teacher] if scheme.teacher else None
    for head in heads:
        assert metrics[head] == pytest.approx(expected(logits[head], whole.labels.tolist(), teacher), rel=1e-9), head
    if scheme.teacher:
        assert metrics[scheme.teacher]["agreement"] == 100.0
        assert metrics[scheme.teacher]["kl"] == 0.0


@pytest.mark.parametrize("name", [*DEFAULTS, "self-byot-ema"])
def test_evaluation_changes_neither_weights_nor_modes(name: str, data: DataModule) -> None:
    scheme = build(*VARIANTS[name]).train()
    held = next(module for module in scheme.modules() if isinstance(module, nn.BatchNorm2d))
    held.eval()
    modes = {key: module.training for key, module in scheme.named_modules()}
    state = {key: value.clone() for key, value in scheme.state_dict().items()}
    evaluate(scheme, batches(data), CPU)
    assert scheme.training
    assert {key: module.training for key, module in scheme.named_modules()} == modes
    assert all(torch.equal(value, state[key]) for key, value in scheme.state_dict().items())


def test_modes_come_back_after_an_error_too() -> None:
    scheme = build(*OFFLINE).train()

    def broken() -> None:
        with evaluation_mode(scheme):
            assert not any(module.training for module in scheme.modules())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    assert scheme.training
    assert scheme.nodes["student"].network.bn1.training


def test_batches_of_any_size_give_the_same_metrics(data: DataModule) -> None:
    scheme = build(*OFFLINE)
    one, other = (evaluate(scheme, batches(data, size), CPU) for size in (7, 90))
    for head in one:
        assert one[head] == pytest.approx(other[head], rel=1e-9)


def test_no_gradient_is_kept() -> None:
    scheme, batch = build(*OFFLINE), random_batch()
    evaluate(scheme, [batch], CPU)
    assert all(p.grad is None for p in scheme.parameters())


def test_chosen_heads_alone_have_the_same_metrics(data: DataModule) -> None:
    scheme = build(*OFFLINE)
    everything = evaluate(scheme, batches(data), CPU)
    assert list(everything) == ["student", "teacher"]
    for head in everything:
        assert evaluate(scheme, batches(data), CPU, [head]) == {head: everything[head]}
