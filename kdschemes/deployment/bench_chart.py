"""The picture of `kdschemes bench`: accuracy against latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from kdschemes.report.charts.base import chart, numbers, percents
from kdschemes.report.document import Chart
from kdschemes.report.render import png, specs
from kdschemes.report.style import SERIES


def chart_png(rows: Sequence[Mapping[str, Any]], *, fastest: bool) -> bytes:
    """Return the accuracy of each form of a network against its latency for one image, a panel per place, as PNG.

    The latency is the median, or the fastest turn, which other programs disturb least.
    """
    key, word = ("fastest_ms", "fastest turn") if fastest else ("p50_ms", "median")
    panels = []
    for place in dict.fromkeys(row["on"] for row in rows):
        points = [
            {"network": row["hue"], "form": row["form"], "ms": round(row[key], 4), "top1": round(row["top1"], 3)}
            for row in rows
            if row["on"] == place
        ]
        panels.append(_panel(points, f"latency of one image (ms, {word}), {place}"))
    spec = alt.vconcat(*panels) if len(panels) > 1 else panels[0]
    return png(specs([Chart(name="bench", spec=spec)])["bench"])


def _panel(points: Sequence[dict[str, Any]], title: str) -> Any:
    names = list(dict.fromkeys(point["network"] for point in points))
    colors = [SERIES[number % len(SERIES)] for number in range(len(names))]
    scale = numbers([point["ms"] for point in points], padding=20)
    marks = chart(points).mark_point(filled=True, size=110)
    return marks.encode(
        x=alt.X("ms:Q", title=title, scale=scale, axis=alt.Axis(tickCount=6)),
        y=alt.Y("top1:Q", title="test top-1 (%)", scale=percents(point["top1"] for point in points)),
        color=alt.Color("network:N", scale=alt.Scale(domain=names, range=colors), title=None),
        shape=alt.Shape("form:N", title=None, sort=None),
    ).properties(width=640, height=260)
