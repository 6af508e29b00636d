"""Cross-entropy with smoothed and mixed labels."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from kdschemes.core.cross_entropy import balanced_weights, binary_cross_entropy, cross_entropy
from tests.losses import formulas
from tests.losses.cases import Inputs, Parameters, Reference
from tests.losses.inputs import gradient, logits


def smoothed_by_single_precision(x: Inputs, p: Parameters) -> Tensor:
    """label_smoothing=0.1 over the others, with targets rounded to float32 as in the reference."""
    others = x["s"].shape[1] - 1
    on, off = (float(np.float32(share)) for share in (0.9, 0.1 / others))
    spread = cross_entropy(x["s"], x["y"], label_smoothing=1.0, label_smoothing_over="others")
    return on * cross_entropy(x["s"], x["y"]) + off * others * spread


REFERENCES: dict[str, Reference] = {"LabelSmooth.Teacher-free": smoothed_by_single_precision}


@pytest.mark.parametrize("over", ["all", "others"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.95, 1.0])
def test_value_equals_the_formula(smoothing: float, over: Literal["all", "others"]) -> None:
    z, labels, partners = logits(21), torch.tensor([0, 9, 3, 3, 1, 5]), torch.tensor([1, 9, 0, 7, 7, 2])
    mix = torch.tensor([1.0, 0.0, 0.3, 0.5, 0.9, 0.25])
    own, partner = (formulas.one_hot(y.tolist(), 10, smoothing=smoothing, over=over) for y in (labels, partners))
    value = cross_entropy(z, labels, label_smoothing=smoothing, label_smoothing_over=over)
    assert value.item() == pytest.approx(formulas.cross_entropy(z.numpy(), own), rel=1e-12)
    share = mix.double().numpy()[:, None]
    mixed = cross_entropy(
        z, labels, label_smoothing=smoothing, label_smoothing_over=over, partner_labels=partners, mix=mix
    )
    assert mixed.item() == pytest.approx(
        formulas.cross_entropy(z.numpy(), share * own + (1 - share) * partner), rel=1e-12
    )


def test_smoothing_over_the_others_equals_stronger_smoothing_over_all() -> None:
    z, labels = logits(22).requires_grad_(), torch.tensor([0, 9, 3, 3, 1, 5])
    others = cross_entropy(z, labels, label_smoothing=0.09, label_smoothing_over="others")
    torch.testing.assert_close(others, cross_entropy(z, labels, label_smoothing=0.1))
    steep = cross_entropy(z, labels, label_smoothing=0.99, label_smoothing_over="others")
    target = torch.from_numpy(formulas.one_hot(labels.tolist(), 10, smoothing=0.99, over="others"))
    torch.testing.assert_close(gradient(steep, z), (torch.softmax(z, 1) - target) / 6)


def test_extreme_logits() -> None:
    z = torch.tensor([[1e4, 0.0], [0.0, 1e4]], requires_grad=True)
    value = cross_entropy(z, torch.tensor([1, 1]))
    assert value.item() == 5000.0
    assert gradient(value, z).isfinite().all()
    assert cross_entropy(z.half(), torch.tensor([1, 1])).dtype == torch.float32
    assert cross_entropy(torch.zeros(3, 7), torch.zeros(3, dtype=torch.long)).item() == pytest.approx(math.log(7))


def test_autocast_changes_nothing() -> None:
    z, labels = logits(6).float(), torch.arange(6)
    plain = cross_entropy(z, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = cross_entropy(z, labels)
    assert inside.dtype == torch.float32
    assert inside.item() == plain.item()


def test_class_weights_multiply_the_loss_of_their_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 4, dtype=torch.float64, generator=generator)
    labels, partners = torch.randint(4, (2, 7), generator=generator)
    weights, mix = torch.tensor([0.0, 0.5, 1.0, 3.0]), torch.rand(7, dtype=torch.float64, generator=generator)
    found = cross_entropy(
        logits, labels, label_smoothing=0.2, partner_labels=partners, mix=mix, class_weights=weights
    ).item()
    total = 0.0
    for n in range(7):
        log_p = logits[n].log_softmax(0)
        for label, share in ((labels[n], mix[n]), (partners[n], 1 - mix[n])):
            target = torch.full((4,), 0.05, dtype=torch.float64)
            target[label] += 0.8
            total -= float(share * weights[label] * (target * log_p).sum())
    assert found == pytest.approx(total / 7, rel=1e-12)
    assert cross_entropy(logits, labels, class_weights=torch.ones(4)) == cross_entropy(logits, labels)


def test_balanced_weights_have_the_mean_1_and_give_each_class_the_same_sum() -> None:
    labels = torch.tensor([0] * 6 + [1] * 3 + [3])
    weights = balanced_weights(labels, 5)
    assert weights.tolist() == pytest.approx([10 / 18, 10 / 9, 0, 10 / 3, 0])
    assert weights[labels].mean().item() == pytest.approx(1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_samples_without_a_label_have_weight_0_in_a_mean_over_all(smoothing: float) -> None:
    """Also with smoothing above 1, as over the other classes, with mixup, and with class weights."""
    z, labels = logits(21).requires_grad_(), torch.tensor([0, -1, 3, 3, -1, 5])
    known = labels >= 0
    weights = torch.linspace(0.5, 2.0, 10)
    for options in ({}, {"label_smoothing_over": "others"}, {"class_weights": weights}):
        value = cross_entropy(z, labels, label_smoothing=smoothing, **options)  # type: ignore[arg-type]
        alone = cross_entropy(z[known], labels[known], label_smoothing=smoothing, **options)  # type: ignore[arg-type]
        assert value.item() == pytest.approx(alone.item() * 4 / 6, rel=1e-6)
        (slope,) = torch.autograd.grad(value, z)
        assert not slope[~known].any()
        assert slope[known].any(dim=1).all()
    mix = torch.full((6,), 0.75)
    mixed = cross_entropy(z, labels, partner_labels=labels.flip(0), mix=mix)
    parts = 0.75 * cross_entropy(z, labels) + 0.25 * cross_entropy(z, labels.flip(0))
    assert mixed.item() == pytest.approx(parts.item(), rel=1e-6)


def test_several_labels_are_binary_problems_whose_losses_add_up() -> None:
    z, mix = logits(22, n=3, c=4), torch.tensor([1.0, 0.0, 0.3])
    rows = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    partners = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]])

    def loop(targets: list[list[float]]) -> float:
        total = 0.0
        for logit_row, row in zip(z.tolist(), targets, strict=True):
            for logit, y in zip(logit_row, row, strict=True):
                p = 1 / (1 + math.exp(-logit))
                total -= y * math.log(p) + (1 - y) * math.log(1 - p)
        return total / len(targets)

    assert binary_cross_entropy(z, rows).item() == pytest.approx(loop(rows.tolist()), rel=1e-12)
    lists = zip(mix.tolist(), rows.tolist(), partners.tolist(), strict=True)
    mixed = [[m * a + (1 - m) * b for a, b in zip(own, other, strict=True)] for m, own, other in lists]
    value = binary_cross_entropy(z, rows, partner_labels=partners, mix=mix)
    assert value.item() == pytest.approx(loop(mixed), rel=1e-7)
    z.requires_grad_()
    torch.testing.assert_close(gradient(binary_cross_entropy(z, rows), z), (torch.sigmoid(z) - rows) / 3)
    for extreme in (-1e4, 1e4):
        far = torch.full((1, 2), extreme, requires_grad=True)
        value = binary_cross_entropy(far, torch.tensor([[0, 1]]))
        assert value.item() == pytest.approx(1e4)
        assert gradient(value, far).isfinite().all()
