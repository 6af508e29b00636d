"""Weights and rates as pure functions of `Progress`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from kdschemes.core.types import Progress

Schedule = Callable[[Progress], float]


def constant(value: float) -> Schedule:
    """Return `value` at all times."""
    return lambda progress: value


def linear_ramp(value: float, epochs: float) -> Schedule:
    """Rise in a straight line from 0 to `value` over `epochs`, then stay."""
    return lambda progress: value * min(progress.epoch / epochs, 1.0)


def sigmoid_ramp(value: float, epochs: float) -> Schedule:
    """Rise as `value * exp(-5 (1 - min(e, R) / R)^2)`, R = `epochs` (Laine & Aila 2017), from 0.0067 `value`."""
    return lambda progress: value * math.exp(-5.0 * (1.0 - min(progress.epoch / epochs, 1.0)) ** 2)


def cosine_decay(value: float, epochs: float) -> Schedule:
    """Fall from `value` to 0 over `epochs` along half a cosine, then stay at 0."""
    return lambda progress: value * 0.5 * (1.0 + math.cos(math.pi * min(progress.epoch / epochs, 1.0)))


def ramp(name: str, value: float, epochs: float) -> Schedule:
    """Return the schedule that a loss's options name: constant, linear, sigmoid or cosine."""
    if name == "constant":
        return constant(value)
    return {"linear": linear_ramp, "sigmoid": sigmoid_ramp, "cosine": cosine_decay}[name](value, epochs)


def learning_rate(
    name: str, peak: float, *, warmup_epochs: float, milestones: Sequence[float] = (), gamma: float = 0.1
) -> Schedule:
    """Return the learning rate of the next optimizer step.

    Linear warm-up over `warmup_epochs` (the k-th step of w has k/w of the peak), then `constant`; or `cosine`: half a
    cosine from `peak` towards 0 at the end of training (Loshchilov & Hutter 2017, without restarts); or `step`: times
    `gamma` after each share of the training in `milestones`.
    """

    def rate(progress: Progress) -> float:
        warmup = warmup_epochs * progress.steps_per_epoch
        if progress.step < warmup:
            return peak * min((progress.step + 1) / warmup, 1.0)
        if name == "cosine":
            share = (progress.step - warmup) / max(progress.total_steps - warmup, 1)
            return peak * 0.5 * (1.0 + math.cos(math.pi * share))
        if name == "step":
            return peak * gamma ** sum(progress.fraction >= milestone for milestone in milestones)
        return peak

    return rate
