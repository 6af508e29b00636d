"""Accuracy against inference cost, with the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import altair as alt

from kdschemes.report.charts.base import chart, numbers, percents
from kdschemes.report.colors import Hue
from kdschemes.report.document import Chart
from kdschemes.report.formatting import MEAN_OVER_PEERS, cost, heads, mean_of, primary_head, spread, std_of
from kdschemes.report.groups import Group
from kdschemes.report.style import INK, MUTED

COSTS = (("macs", "multiply-accumulates per image"), ("parameters", "parameters"))
"""Key and title of the axis. Latencies of different runs are not comparable: the machine's load is in them."""

REPORTED, OTHER = "reported head", "other head"

ELSE = "teacher"


def cost_charts(groups: Sequence[Group], hue: Hue) -> tuple[list[Chart], str]:
    """Return charts of test top-1 against the costs in which the heads differ, and a sentence about the others.

    There is only one if all reported heads have the same cost, or if both costs order all heads alike.
    """
    points = _points(groups, hue)
    reported = [[point[key] for key, _ in COSTS] for point in points if point["kind"] == REPORTED]
    charts: list[Chart] = []
    words: list[str] = []
    orders: list[list[int]] = []
    for key, title in COSTS:
        found = [point for point in points if point.get(key) is not None]
        order = [sorted({point[key] for point in found}).index(point[key]) for point in found]
        if not found:
            words.append(f"{title}: not measured in these runs.")
        elif not any(order):
            words.append(f"{title}: the same for all.")
        elif order in orders or (charts and all(costs == reported[0] for costs in reported)):
            words.append(f"{title}: see the table.")
        else:
            orders.append(order)
            charts.append(_chart(found, key, title, hue))
    return charts, " ".join(word[0].upper() + word[1:] for word in words)


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the positions of points (cost, value) that no other point dominates (no higher cost, no lower value).

    They are ordered by cost; of equal points only the first is included.
    """
    chosen: list[int] = []
    for index in sorted(range(len(points)), key=lambda one: (points[one][0], -points[one][1], one)):
        if not chosen or points[index][1] > points[chosen[-1]][1]:
            chosen.append(index)
    return chosen


def _points(groups: Sequence[Group], hue: Hue) -> list[dict[str, Any]]:
    """Return one point per head; a head in several runs, such as a teacher in its students' runs, appears once."""
    points: list[dict[str, Any]] = []
    seen: set[tuple[float | None, ...]] = set()
    own = [(group, primary_head(group)) for group in groups if group.finished]
    others = [(group, head) for group, first in own for head in heads(group) if head not in (first, MEAN_OVER_PEERS)]
    for group, head in [*own, *others]:
        values = spread(group, head, "last", "top1")
        if not values or not all(map(math.isfinite, values)):
            continue
        costs = {key: mean_of(of) if (of := cost(group, head, key)) else None for key, *_ in COSTS}
        key = (costs["parameters"], costs["macs"], round(mean_of(values), 6))
        is_reported = head == primary_head(group)
        if not is_reported and key in seen:
            continue
        seen.add(key)
        teaches = group.results[0].get("teacher") == head
        label = group.label if is_reported else head if teaches else f"{group.label} ({head})"
        hue_of = ELSE if teaches else hue.of.get(group.label, ELSE)
        points.append(
            {"run": label, "hue": hue_of, "kind": REPORTED if is_reported else OTHER}
            | {"top1": round(mean_of(values), 3), "std": round(std_of(values), 3), "seeds": len(values)}
            | costs
        )
    return points


def _chart(points: Sequence[dict[str, Any]], key: str, title: str, hue: Hue) -> Chart:
    rows = [{name: value for name, value in point.items() if value is not None} for point in points]
    chosen = front([(point[key], point["top1"]) for point in points])
    scale = numbers([point[key] for point in points], padding=20)
    x = alt.X(f"{key}:Q", title=title, scale=scale, axis=alt.Axis(format="~s", tickCount=5, grid=False))
    y = alt.Y("top1:Q", title="test top-1 (%)", scale=percents(point["top1"] for point in points))
    shown = hue.only((point["hue"] for point in points), {ELSE: MUTED})
    kinds = alt.Scale(domain=[REPORTED, OTHER], range=["circle", "diamond"])
    several = any(point["kind"] == OTHER for point in points)
    shape = alt.Shape("kind:N", scale=kinds, title=None, legend=alt.Legend() if several else None)
    tips = ["run:N", "kind:N", f"{key}:Q", "top1:Q", "std:Q", "seeds:Q"]
    front_rows = [rows[index] | {"number": number} for number, index in enumerate(chosen, 1)]
    of_front = chart(front_rows).encode(x=x, y=y)
    spec = alt.layer(
        of_front.mark_line(interpolate="step-after", color=MUTED, strokeWidth=1.2, strokeDash=[4, 3]),
        chart(rows)
        .mark_point(filled=True, size=80, opacity=0.95)
        .encode(x=x, y=y, color=shown.color(), shape=shape, tooltip=tips),
        of_front.mark_text(color=INK, fontSize=11, fontWeight=600, dy=-12).encode(text="number:N"),
    )
    named = ", ".join(f"{row['number']} {row['run']}" for row in front_rows)
    caption = (
        f"Test top-1 after the last epoch against {title}, means over seeds. Dashed: the Pareto front (no other "
        f"point is as cheap and as accurate): {named}."
    )
    return Chart(name=f"cost_{key}", spec=spec.properties(width="container", height=340), caption=caption)
