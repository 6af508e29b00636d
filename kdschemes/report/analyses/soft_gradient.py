"""The gradient of distillation at a student's logits, and its limit at high temperatures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Logits = Float[Tensor, "n classes"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The gradient of softened cross-entropy against its high-temperature limit, at each temperature.

    `exact` and `limit` are mean lengths of a sample's gradient. `raw` and `centered` are relative errors of the limit,
    ||g - limit|| / ||limit|| over all samples, for the logits as they are and centered over each sample's classes.
    """

    temperatures: tuple[float, ...]
    exact: tuple[float, ...]
    limit: tuple[float, ...]
    raw: tuple[float, ...]
    centered: tuple[float, ...]


def soft_gradient(student: Logits, teacher: Logits, temperature: float) -> Logits:
    """Return, by autograd, dC/dz of C = -sum_i softmax(v / T)_i log softmax(z / T)_i for each sample, without T^2.

    It is (softmax(z / T) - softmax(v / T)) / T (Hinton et al. 2015, equation 2); z are the student's logits, v the
    teacher's.
    """
    logits = student.detach().requires_grad_()
    target = (teacher / temperature).softmax(dim=1)
    loss = -(target * (logits / temperature).log_softmax(dim=1)).sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    return gradient


def high_temperature_limit(student: Logits, teacher: Logits, temperature: float) -> Logits:
    """Return (z - v) / (N T^2) of N classes: the gradient at T far above the logits, if they are centered."""
    return (student - teacher) / (student.shape[1] * temperature**2)


def centered(logits: Logits) -> Logits:
    """Return logits minus their mean over the classes of each sample."""
    return logits - logits.mean(dim=1, keepdim=True)


def std(logits: Logits) -> float:
    """Return the root mean square of logits minus their sample's mean, over samples and classes."""
    return float(centered(logits).square().mean().sqrt())


def error_constant(student: Logits, teacher: Logits) -> float:
    """Return C of the relative error C / T of the limit from centered logits, to leading order in 1 / T.

    With s(x) = x^2 less its mean over the classes, C = ||s(z) - s(v)|| / (2 ||z - v||), as softmax(z / T) is
    (1 + z / T + s(z) / (2 T^2) + ...) / N.
    """
    z, v = centered(student), centered(teacher)
    return float((centered(z.square()) - centered(v.square())).norm() / (2 * (z - v).norm()))


def compare(student: Logits, teacher: Logits, temperatures: Sequence[float]) -> Comparison:
    """Compare the gradient with its limit at each temperature, in float64."""
    z, v = student.double(), teacher.double()
    rows = []
    for temperature in temperatures:
        gradient = soft_gradient(z, v, temperature)
        raw = high_temperature_limit(z, v, temperature)
        limit = high_temperature_limit(centered(z), centered(v), temperature)
        errors = (float((gradient - one).norm() / one.norm()) for one in (raw, limit))
        rows.append((float(gradient.norm(dim=1).mean()), float(limit.norm(dim=1).mean()), *errors))
    exact, limits, raws, centereds = zip(*rows, strict=True)
    return Comparison(temperatures=tuple(temperatures), exact=exact, limit=limits, raw=raws, centered=centereds)
