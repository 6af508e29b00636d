"""The totals of the methods of self-distillation from an earlier run, and other values of their options to try."""

from __future__ import annotations

import numpy as np

from kdschemes.config.schemes import self_distillation as options
from tests.losses import oracles
from tests.schemes.formulas import Formula, Seen
from tests.schemes.variants import base


def ban(seen: Seen) -> float:
    student, teacher = seen.logits("student"), seen.logits("teacher")
    temperature, alpha = seen.config.losses.response.temperature, seen.config.scheme.alpha
    target = np.stack([oracles.softmax(v / temperature) for v in teacher])
    soft = temperature**2 * oracles.cross_entropy(student / temperature, target)
    return (1 - alpha) * oracles.cross_entropy(student, oracles.one_hot(seen.labels, student.shape[1])) + alpha * soft


def tfkd_self(seen: Seen) -> float:
    student, teacher = seen.logits("student"), seen.logits("teacher")
    response, alpha = seen.config.losses.response, seen.config.scheme.alpha
    hard = oracles.cross_entropy(student, oracles.one_hot(seen.labels, student.shape[1]))
    soft = oracles.kd(student, teacher, temperature=response.temperature) / student.shape[1]
    return (1 - alpha) * hard + alpha * response.weight * soft


FORMULAS: dict[type, Formula] = {options.SelfBAN: ban, options.SelfTfKD: tfkd_self}
EXACT = {
    "ban-other": [*base("self", "ban"), "scheme.generations=1", "scheme.alpha=0.4", "losses.response.temperature=2"],
    "tfkd_self-other": [*base("self", "tfkd_self"), "scheme.alpha=0.9", "losses.response.weight=10"],
}
