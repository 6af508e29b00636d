"""Where each chart begins, and axes that several have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt

ROOM = 0.08
"""Of what the values span, what is left free at both ends of an axis."""


def chart(rows: Sequence[dict[str, Any]]) -> alt.Chart:
    """Return a chart with its data inside: a row a dictionary, its values as JSON has them."""
    return alt.Chart(alt.InlineData(values=list(rows)))


def percents(values: Iterable[float]) -> alt.Scale:
    """Return an axis of percentages around values that ends at 0 and at 100; all of it where there are no values."""
    found = list(values) or [0.0, 100.0]
    low, high = min(found), max(found)
    room = ROOM * (high - low) or 1.0
    return alt.Scale(domain=[max(0.0, round(low - room, 1)), min(100.0, round(high + room, 1))], nice=False)
