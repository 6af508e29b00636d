"""Doubts about a teacher: those that its predictions give rise to, and none about a weak or little examined one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from kdschemes.evaluation.teacher_check import doubt


def teacher(samples: int, classes: int, accuracy: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return the predictions of a teacher with this accuracy, its errors spread evenly, and balanced labels."""
    random = np.random.default_rng(seed)
    labels = torch.arange(samples) % classes
    shift = torch.from_numpy(random.integers(1, classes, samples))
    right = torch.from_numpy(random.permutation(samples) < round(accuracy * samples))
    return torch.where(right, labels, (labels + shift) % classes), labels


def said(predicted: Tensor, labels: Tensor, classes: int) -> str | None:
    return doubt(predicted, labels, [f"class {k}" for k in range(classes)])


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(
    ("samples", "classes", "accuracy"),
    [(20, 2, 0.8), (4, 2, 1.0), (20, 2, 0.5), (8, 10, 0.1), (512, 2, 0.6), (512, 10, 0.2), (512, 100, 0.05)],
)
def test_a_teacher_that_is_weak_or_little_examined_is_not_doubted(
    samples: int, classes: int, accuracy: float, seed: int
) -> None:
    assert said(*teacher(samples, classes, accuracy, seed), classes) is None


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("samples", "classes"), [(100, 2), (512, 2), (512, 10), (512, 100), (5000, 1000)])
def test_guessing_is_noticed(samples: int, classes: int, seed: int) -> None:
    predicted = torch.from_numpy(np.random.default_rng(seed).integers(0, classes, samples))
    text = said(predicted, torch.arange(samples) % classes, classes)
    assert text is not None
    assert text.startswith("is at chance level (")
    assert f"of {samples:,} images, chance is" in text


def test_the_most_frequent_class_for_every_image_is_guessing() -> None:
    labels = (torch.arange(512) % 10 == 0).long()
    text = said(torch.zeros(512, dtype=torch.long), labels, 2)
    assert text is not None
    assert "chance level (89.84 % of 512 images, chance is 89.84 %)" in text
    weak = torch.where(torch.arange(512) % 40 == 0, 1, 0)  # a quarter of the rare class, no false alarm
    assert said(weak, labels, 2) is None


@pytest.mark.parametrize("accuracy", [0.5, 1.0])
@pytest.mark.parametrize(("samples", "classes"), [(100, 2), (512, 10), (512, 100), (5000, 1000)])
def test_another_order_is_noticed_and_shown(samples: int, classes: int, accuracy: float) -> None:
    accuracy = 0.9 if classes == 2 and accuracy == 0.5 else accuracy
    predicted, labels = teacher(samples, classes, accuracy)
    text = said((predicted + 1) % classes, labels, classes)
    assert text is not None
    assert text.startswith("seems to have its classes in another order: ")
    assert "'class 0' mostly 'class 1'" in text


def test_two_classes_of_ten_that_are_swapped_are_noticed() -> None:
    predicted, labels = teacher(512, 10, 0.9)
    order = torch.tensor([0, 1, 2, 7, 4, 5, 6, 3, 8, 9])
    text = said(order[predicted], labels, 10)
    assert text is not None
    assert "'class 3' mostly 'class 7', 'class 7' mostly 'class 3'; are these" in text


def test_a_teacher_that_takes_one_class_for_another_is_not_in_another_order() -> None:
    predicted, labels = teacher(512, 10, 0.9)
    assert said(torch.where(predicted == 3, 7, predicted), labels, 10) is None
