"""Loss weights and learning rates as pure functions of `Progress`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from kdschemes.core.types import Progress

Schedule = Callable[[Progress], float]


def constant(value: float) -> Schedule:
    return lambda progress: value


def linear_ramp(value: float, epochs: float) -> Schedule:
    """Rise linearly from 0 to `value` over `epochs`, then stay there."""
    return lambda progress: value * min(progress.epoch / epochs, 1.0)


def sigmoid_ramp(value: float, epochs: float) -> Schedule:
    """Rise as `value * exp(-5 (1 - min(e, R) / R)^2)`, R = `epochs` (Laine & Aila 2017), from 0.0067 `value`."""
    return lambda progress: value * math.exp(-5.0 * (1.0 - min(progress.epoch / epochs, 1.0)) ** 2)


def cosine_decay(value: float, epochs: float) -> Schedule:
    """Decay from `value` to 0 along a half cosine over `epochs`, then stay at 0."""
    return lambda progress: value * 0.5 * (1.0 + math.cos(math.pi * min(progress.epoch / epochs, 1.0)))


def ramp(name: str, value: float, epochs: float) -> Schedule:
    """Return the schedule by its name in a loss's options: constant, linear, sigmoid, or cosine."""
    if name == "constant":
        return constant(value)
    return {"linear": linear_ramp, "sigmoid": sigmoid_ramp, "cosine": cosine_decay}[name](value, epochs)


def learning_rate(
    name: str, peak: float, *, warmup_epochs: float, milestones: Sequence[float] = (), gamma: float = 0.1
) -> Schedule:
    """Return the schedule of the learning rate of the next optimizer step.

    Linear warmup over `warmup_epochs` (step k of w has k/w of the peak), then `constant`; `cosine`: a half cosine from
    `peak` to 0 at the end of training (Loshchilov & Hutter 2017, without restarts); `step`: multiplied by `gamma` at
    each of the `milestones`, fractions of training; or `exponential`: multiplied by `gamma` after each epoch.
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
        if name == "exponential":
            return peak * gamma ** (progress.step // progress.steps_per_epoch)
        return peak

    return rate
