"""What charts share: their data and axes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import altair as alt

ROOM = 0.08
"""Margin at both ends of an axis, as a fraction of the range of the values."""


WIDE = 8.0
"""Ratio of values above which an axis is logarithmic."""

TICKS = 15
"""Maximum number of labeled epochs of an axis."""


def chart(rows: Sequence[dict[str, Any]]) -> alt.Chart:
    """Return a chart with its data embedded: one dictionary per row, with JSON values."""
    return alt.Chart(alt.InlineData(values=list(rows)))


def numbers(values: Collection[float], padding: int) -> alt.Scale:
    """Return an axis of numbers, logarithmic if they are positive and span more than a factor of `WIDE`."""
    if min(values) > 0 and max(values) / min(values) > WIDE:
        return alt.Scale(type="log", nice=False, padding=padding)
    return alt.Scale(zero=False, nice=False, padding=padding)


def percents(values: Iterable[float]) -> alt.Scale:
    """Return an axis of percentages around values, clipped to [0, 100]; the whole range if there are no values."""
    found = list(values) or [0.0, 100.0]
    low, high = min(found), max(found)
    room = ROOM * (high - low) or 1.0
    return alt.Scale(domain=[max(0.0, round(low - room, 1)), min(100.0, round(high + room, 1))], nice=False)


def epochs(last: float) -> alt.X:
    """Return the axis of the field "epoch", with ticks at whole numbers up to the last epoch."""
    step = next(
        factor * 10**power for power in range(9) for factor in (1, 2, 5) if last / (factor * 10**power) <= TICKS
    )
    ticks = sorted({1, *range(step, int(last) + 1, step)})
    return alt.X("epoch:Q", title="epoch", axis=alt.Axis(values=ticks, format="d", grid=False, labelOverlap=True))
