"""What the totals of the self-distillation methods share."""

from __future__ import annotations

import numpy as np
import torch

from tests.losses import oracles
from tests.losses.oracles import Array
from tests.schemes.formulas import Seen, array


def hard(seen: Seen) -> float:
    """The cross-entropy of the student."""
    student = seen.logits("student")
    return oracles.cross_entropy(student, oracles.one_hot(seen.labels, student.shape[1]))


def pooled(features: torch.Tensor) -> oracles.Array:
    """The mean of a map over its positions."""
    return array(features).mean(axis=(2, 3))


def last_feature(seen: Seen, name: str) -> torch.Tensor:
    """The deepest feature of an output."""
    return list(seen.out[name].features.values())[-1]


def soft_ce(student: Array, teacher: Array, *, temperature: float) -> float:
    """Cross-entropy of the student's softened output with the teacher's, without T^2."""
    targets = np.stack([oracles.softmax(v / temperature) for v in teacher])
    return oracles.cross_entropy(student / temperature, targets)
