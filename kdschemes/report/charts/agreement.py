"""Who agrees with whom on the test set: heads of one run, and methods of the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any

import altair as alt
import numpy as np
import numpy.typing as npt

from kdschemes.report.charts.base import chart
from kdschemes.report.document import Chart, Section
from kdschemes.report.formatting import mean_of, primary_head
from kdschemes.report.groups import Group
from kdschemes.report.predictions import Stored

MOST_ROWS, MOST_MATRICES = 12, 4

LEAST_HEADS = 3
"""Number of heads from which on a matrix is drawn; student-teacher agreement is in the table of results."""


def agreement_section(groups: Sequence[Group], stored: Stored) -> Section | None:
    """Return the matrices of heads and of groups; None if no predictions are stored for any."""
    charts = _within(groups, stored) + _between(groups, stored)
    return Section(title="Agreement", charts=charts) if charts else None


def agreement(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> float:
    """Return the percentage of images to which two heads assign the same class."""
    return 100 * float((a == b).mean())


def _within(groups: Sequence[Group], stored: Stored) -> list[Chart]:
    charts: list[Chart] = []
    for group in groups:
        runs = list(stored.of.get(group.label, {}).values())
        names = [*group.results[0]["heads"], *(head for found in runs for head in found.heads)]
        names = [head for head in dict.fromkeys(names) if runs and len(stored.with_head(group, head)) == len(runs)]
        if len(names) < LEAST_HEADS or len(charts) == MOST_MATRICES:
            continue
        rows = []
        for a, b in combinations(names, 2):
            values = [agreement(found.heads[a]["test"].classes, found.heads[b]["test"].classes) for found in runs]
            rows += [_cell(a, b, values), _cell(b, a, values)]
        caption = (
            f"{group.label}: percentage of test images to which two heads assign the same class, mean over "
            f"{len(runs)} {'seed' if len(runs) == 1 else 'seeds'}."
        )
        ending = f"_{len(charts) + 1}" if charts else ""
        charts.append(_matrix(f"agreement{ending}", rows, names, caption))
    return charts


def _between(groups: Sequence[Group], stored: Stored) -> list[Chart]:
    of = {group.label: stored.with_head(group, primary_head(group)) for group in groups}
    all_of_them = [group for group in groups if of[group.label]]
    own = all_of_them[:MOST_ROWS]
    rows = []
    for a, b in product(own, own):
        pairs = [
            (of[a.label][one], of[b.label][two])
            for one, two in product(of[a.label], of[b.label])
            if (one < two if a is b else one == two)
        ]
        values = [
            agreement(left.heads[primary_head(a)]["test"].classes, right.heads[primary_head(b)]["test"].classes)
            for left, right in pairs
            if np.array_equal(left.labels["test"], right.labels["test"])
        ]
        if values:
            rows.append(_cell(a.label, b.label, values))
    if len(own) < 2 or not rows:
        return []
    caption = (
        "Percentage of test images to which the reported heads of two runs assign the same class. Off the diagonal: "
        "runs of the same seed, mean over seeds. On the diagonal: runs of different seeds, that is, the effect of "
        "chance alone."
    )
    if left_out := len(all_of_them) - len(own):
        caption += f" The first {MOST_ROWS} groups; {left_out} more are left out."
    return [_matrix("agreement_between", rows, [group.label for group in own], caption)]


def _cell(a: str, b: str, values: Sequence[float]) -> dict[str, Any]:
    mean = mean_of(values)
    return {"a": a, "b": b, "percent": round(mean, 2), "text": f"{mean:.1f}", "pairs": len(values)}


def _matrix(name: str, rows: Sequence[dict[str, Any]], names: Sequence[str], caption: str) -> Chart:
    low, high = min(row["percent"] for row in rows), max(row["percent"] for row in rows)
    middle = low + 0.45 * (high - low)
    inked = [row | {"ink": "white" if row["percent"] < middle else "black"} for row in rows]
    angle = -40 if max(map(len, names)) > 8 else 0
    axis = alt.Axis(labelAngle=angle, ticks=False, domain=False, labelOverlap=False)
    base = chart(inked).encode(
        x=alt.X("b:N", sort=list(names), title=None, axis=axis),
        y=alt.Y("a:N", sort=list(names), title=None, axis=alt.Axis(ticks=False, domain=False)),
    )
    scale = alt.Scale(scheme="cividis", domain=[low, high] if low < high else [low - 1, high], nice=False)
    tips = ["a:N", "b:N", "percent:Q", "pairs:Q"]
    spec = alt.layer(
        base.mark_rect(cornerRadius=2).encode(color=alt.Color("percent:Q", scale=scale, legend=None), tooltip=tips),
        base.mark_text(fontSize=11).encode(text="text:N", color=alt.Color("ink:N", scale=None, legend=None)),
    ).resolve_scale(color="independent")
    return Chart(name=name, spec=spec.properties(width=alt.Step(64), height=34 * len(names)), caption=caption)
