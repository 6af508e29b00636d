"""Test accuracy of every group: the seeds as dots, their mean and standard deviation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import altair as alt

from kdschemes.printable import printable
from kdschemes.report.charts.base import chart, percents
from kdschemes.report.colors import Hue
from kdschemes.report.document import Chart
from kdschemes.report.formatting import accuracy, mean_of, name, primary_head, std_of
from kdschemes.report.groups import Group
from kdschemes.report.style import AXIS_LINE, MUTED, wrapped

TEACHES = "teaches"

LABEL_WIDTH = 190
"""Pixels of a label's longest line; longer words are cut."""


def accuracy_chart(groups: Sequence[Group], hue: Hue) -> Chart | None:
    """Return the chart of test top-1 after the last epoch; None if no group has any."""
    means: list[dict[str, Any]] = []
    dots: list[dict[str, Any]] = []
    for group in groups:
        values = accuracy(group)
        if not values or not all(map(math.isfinite, values.values())):
            continue
        named = {"run": name(group), "hue": hue.of.get(group.label, TEACHES)}
        dots += [named | {"seed": seed, "top1": round(value, 3)} for seed, value in values.items()]
        mean, std = mean_of(values.values()), std_of(values.values())
        means.append(
            named
            | {"mean": round(mean, 3), "low": round(mean - std, 3), "high": round(mean + std, 3)}
            | {"head": primary_head(group), "std": round(std, 3), "seeds": len(values)}
        )
    if not means:
        return None
    scale = percents([row[end] for row in means for end in ("low", "high")] + [row["top1"] for row in dots])
    x = alt.X("mean:Q", title="test top-1 (%)", scale=scale, axis=alt.Axis(tickCount=8))
    labels, lines = wrapped((printable(row["run"], lines=True) for row in means), AXIS_LINE)
    axis = alt.Axis(grid=True, ticks=False, domain=False, labelExpr=labels, labelLimit=LABEL_WIDTH)
    y = alt.Y("run:N", title=None, sort=None, axis=axis)
    names, colors = [*hue.names, TEACHES], [*hue.colors, MUTED]
    color = alt.Color("hue:N", scale=alt.Scale(domain=names, range=colors), legend=None)
    tips = ["run:N", "head:N", "mean:Q", "std:Q", "seeds:Q"]
    of_means = chart(means).encode(y=y, color=color)
    of_dots = chart(dots).encode(y=y, color=color)
    spec = alt.layer(
        of_means.mark_rule(strokeWidth=1.5, clip=True).encode(x=alt.X("low:Q", scale=scale), x2="high:Q"),
        of_dots.mark_point(filled=True, size=44, opacity=0.45).encode(
            x=alt.X("top1:Q", scale=scale), tooltip=["run:N", "seed:Q", "top1:Q"]
        ),
        of_means.mark_tick(thickness=3, size=16).encode(x=x, tooltip=tips),
    ).properties(width="container", height=max(80, max(28, 15 * lines + 6) * len(means)))
    caption = (
        "Test top-1 of the reported heads after the last epoch: dots are seeds, the tick is their mean, the line "
        "extends one sample std to both sides."
    )
    return Chart(name="accuracy", spec=spec, caption=caption)
