"""Ramps and learning rates at points where their formulas give known numbers."""

from __future__ import annotations

import math

import pytest

from kdschemes.core.schedules import Schedule, constant, cosine_decay, learning_rate, linear_ramp, ramp, sigmoid_ramp
from kdschemes.core.types import Progress

STEPS = 100


def at(schedule: Schedule, epoch: float, epochs: int = 20) -> float:
    return schedule(Progress(step=round(epoch * STEPS), total_steps=epochs * STEPS, steps_per_epoch=STEPS))


def test_progress_counts_epochs_and_the_share_that_is_done() -> None:
    progress = Progress(step=150, total_steps=600, steps_per_epoch=100)
    assert (progress.epoch, progress.fraction) == (1.5, 0.25)


def test_a_constant_stays() -> None:
    assert [at(constant(3.0), epoch) for epoch in (0, 7.5, 20)] == [3.0, 3.0, 3.0]


def test_a_linear_ramp_rises_in_a_straight_line_and_stays() -> None:
    schedule = linear_ramp(8.0, 4.0)
    assert [at(schedule, epoch) for epoch in (0, 1, 2, 3.5, 4, 4.01, 20)] == [0.0, 2.0, 4.0, 7.0, 8.0, 8.0, 8.0]


def test_a_sigmoid_ramp_is_that_of_laine_and_aila() -> None:
    schedule = sigmoid_ramp(2.0, 10.0)
    assert at(schedule, 0) == pytest.approx(2 * math.exp(-5), rel=1e-12)
    assert at(schedule, 5) == pytest.approx(2 * math.exp(-1.25), rel=1e-12)
    assert at(schedule, 8) == pytest.approx(2 * math.exp(-0.2), rel=1e-12)
    assert [at(schedule, epoch) for epoch in (10, 11, 20)] == [2.0, 2.0, 2.0]


def test_a_cosine_falls_to_zero_and_stays_there() -> None:
    schedule = cosine_decay(2.0, 12.0)
    assert [at(schedule, epoch) for epoch in (0, 4, 6, 8)] == pytest.approx([2.0, 1.5, 1.0, 0.5], rel=1e-12)
    assert [at(schedule, epoch) for epoch in (12, 13, 20)] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("constant", 2.0), ("linear", 0.5), ("sigmoid", 2 * math.exp(-5 * 0.75**2)), ("cosine", 1 + math.sqrt(0.5))],
)
def test_ramps_by_the_names_of_the_options(name: str, expected: float) -> None:
    assert at(ramp(name, 2.0, 8.0), 2) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["constant", "linear", "sigmoid", "cosine"])
def test_a_weight_of_zero_stays_zero(name: str) -> None:
    assert [at(ramp(name, 0.0, 8.0), epoch) for epoch in (0, 3, 8, 20)] == [0.0] * 4


@pytest.mark.parametrize("name", ["cosine", "step", "constant"])
def test_warm_up_reaches_the_peak_at_its_last_step(name: str) -> None:
    schedule = learning_rate(name, 0.4, warmup_epochs=0.04, milestones=[0.5])
    rates = [schedule(Progress(step, 2000, STEPS)) for step in range(4)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4], rel=1e-12)
    assert schedule(Progress(4, 2000, STEPS)) == pytest.approx(0.4, rel=1e-12)


def test_a_warm_up_of_half_a_step_more_does_not_pass_the_peak() -> None:
    schedule = learning_rate("constant", 1.0, warmup_epochs=0.025, milestones=[])
    assert [schedule(Progress(step, 2000, STEPS)) for step in range(4)] == pytest.approx([0.4, 0.8, 1.0, 1.0])


def test_without_warm_up_the_first_step_has_the_peak() -> None:
    for name in ("cosine", "step", "constant"):
        assert at(learning_rate(name, 0.4, warmup_epochs=0.0, milestones=[0.5]), 0) == 0.4


def test_the_cosine_rate_after_warm_up() -> None:
    schedule = learning_rate("cosine", 0.8, warmup_epochs=5.0)
    expected = [0.8, 0.8 * (2 + math.sqrt(2)) / 4, 0.4, 0.8 * (2 - math.sqrt(2)) / 4]
    assert [at(schedule, epoch) for epoch in (5, 8.75, 12.5, 16.25)] == pytest.approx(expected, rel=1e-12)
    last = schedule(Progress(1999, 2000, STEPS))
    assert 0 < last == pytest.approx(0.4 * (1 - math.cos(math.pi / 1500)), rel=1e-6)


def test_the_step_rate_falls_at_each_milestone() -> None:
    schedule = learning_rate("step", 1.0, warmup_epochs=0.0, milestones=[0.5, 0.75], gamma=0.1)
    rates = [schedule(Progress(step, 2000, STEPS)) for step in (0, 999, 1000, 1499, 1500, 1999)]
    assert rates == pytest.approx([1.0, 1.0, 0.1, 0.1, 0.01, 0.01], rel=1e-12)


def test_the_published_milestones_of_240_epochs_are_150_180_and_210() -> None:
    schedule = learning_rate("step", 0.05, warmup_epochs=0.0, milestones=[0.625, 0.75, 0.875], gamma=0.1)
    falls = [e for e in range(1, 240) if at(schedule, e, 240) < at(schedule, e - 1, 240)]
    assert falls == [150, 180, 210]


def test_rates_are_a_function_of_progress_alone() -> None:
    schedule = learning_rate("cosine", 0.8, warmup_epochs=2.0)
    steps = [0, 150, 700, 1999]
    forwards = [schedule(Progress(step, 2000, STEPS)) for step in steps]
    backwards = [schedule(Progress(step, 2000, STEPS)) for step in reversed(steps)]
    assert forwards == backwards[::-1]


def test_an_exponential_rate_falls_after_each_epoch() -> None:
    schedule = learning_rate("exponential", 2.0, warmup_epochs=1.0, gamma=0.5)
    assert at(schedule, 0) == pytest.approx(2.0 / STEPS)
    assert [at(schedule, epoch) for epoch in (1, 1.99, 2, 3.5)] == [1.0, 1.0, 0.5, 0.25]
