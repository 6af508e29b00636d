"""Where each chart begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt


def chart(rows: Sequence[dict[str, Any]]) -> alt.Chart:
    """Return a chart with its data inside: a row a dictionary, its values as JSON has them."""
    return alt.Chart(alt.InlineData(values=list(rows)))
