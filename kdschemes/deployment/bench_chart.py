"""The picture of `kdschemes bench`: accuracy against latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from kdschemes.report.charts.base import chart, numbers, percents
from kdschemes.report.document import Chart
from kdschemes.report.render import png, specs
from kdschemes.report.style import INK, SERIES


def chart_png(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the accuracy of each network against its latency for one image, one panel per place, as PNG."""
    places = list(dict.fromkeys(row["on"] for row in rows))
    hues = list(dict.fromkeys(row["hue"] for row in rows))
    panels = [_panel([row for row in rows if row["on"] == place], place, hues) for place in places]
    spec = alt.vconcat(*panels) if len(panels) > 1 else panels[0]
    return png(specs([Chart(name="bench", spec=spec)])["bench"])


def _panel(rows: Sequence[Mapping[str, Any]], place: str, hues: Sequence[str]) -> Any:
    points = [
        {"network": row["network"], "hue": row["hue"], "runtime": row["runtime"]}
        | {"p50": round(row["p50_ms"], 4), "top1": round(row["top1"], 3)}
        for row in rows
    ]
    scale = numbers([point["p50"] for point in points], padding=40)
    x = alt.X("p50:Q", title=f"latency of one image (ms, median), {place}", scale=scale, axis=alt.Axis(tickCount=6))
    y = alt.Y("top1:Q", title="test top-1 (%)", scale=percents(point["top1"] for point in points))
    colors = [SERIES[number % len(SERIES)] for number in range(len(hues))]
    color = alt.Color("hue:N", scale=alt.Scale(domain=list(hues), range=colors), title=None)
    base = chart(points).encode(x=x, y=y)
    marks = base.mark_point(filled=True, size=90).encode(color=color, shape=alt.Shape("runtime:N", title=None))
    labels = base.mark_text(color=INK, fontSize=11, dy=-12).encode(text="network:N")
    return alt.layer(marks, labels).properties(width=640, height=260)
