"""Reliability diagrams: accuracy against confidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import numpy.typing as npt

from kdschemes.printable import printable
from kdschemes.report.charts.base import chart
from kdschemes.report.colors import Hue, few_colors
from kdschemes.report.document import Chart, Section
from kdschemes.report.formatting import accuracy, by_seed, mean_of, mean_std, primary_head
from kdschemes.report.groups import Group
from kdschemes.report.predictions import Stored
from kdschemes.report.style import LEGEND_LINE, wrapped

BINS = 15
"""Bins of confidence, those of the expected calibration error."""

LEAST_IMAGES = 10
"""Bins with fewer images are not drawn."""

MOST_LINES = 6


def calibration_section(groups: Sequence[Group], stored: Stored, hue: Hue, baseline: str | None) -> Section:
    """Return the reliability of the baseline and of the most accurate groups, or a note that it is not available."""
    runs = [group for group in groups if stored.with_head(group, primary_head(group))]
    text = " ".join(stored.notes)
    return Section(title="Calibration", text=text, charts=[_chart(runs, stored, hue, baseline)] if runs else [])


def reliability(confidence: npt.NDArray[np.float64], right: npt.NDArray[np.bool_]) -> list[tuple[float, float, int]]:
    """Return mean confidence, accuracy (both in percent) and number of images of 15 equal bins (low, high].

    An empty bin has NaN, NaN and 0.
    """
    place = np.clip(np.ceil(np.nan_to_num(confidence) * BINS).astype(np.int64) - 1, 0, BINS - 1)
    found = []
    for index in range(BINS):
        here = place == index
        images = int(here.sum())
        means = [100 * float(of[here].mean()) if images else float("nan") for of in (confidence, right)]
        found.append((means[0], means[1], images))
    return found


def _chart(groups: Sequence[Group], stored: Stored, hue: Hue, baseline: str | None) -> Chart:
    ranked = sorted(groups, key=lambda group: (group.label != baseline, -mean_of(accuracy(group).values() or [0.0])))
    chosen = [group for group in groups if group in ranked[:MOST_LINES]]
    rows: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    for group in chosen:
        head = primary_head(group)
        runs = stored.with_head(group, head).values()
        sure = np.concatenate([found.heads[head]["test"].confidence.astype(np.float64) for found in runs])
        right = np.concatenate([found.heads[head]["test"].classes == found.labels["test"] for found in runs])
        ece = mean_std(by_seed(group, head, "last", "ece").values(), 1)
        names[group.label] = f"{group.label}: ECE {ece} %"
        rows += [
            {"run": names[group.label], "sure": round(mean, 2), "right": round(share, 2), "images": images}
            for mean, share, images in reliability(sure, right)
            if images >= LEAST_IMAGES
        ]
    scale = alt.Scale(domain=list(names.values()), range=few_colors(list(names), hue))
    labels, _ = wrapped((printable(name, lines=True) for name in names.values()), LEGEND_LINE)
    color = alt.Color("run:N", scale=scale, title=None, legend=alt.Legend(columns=2, labelExpr=labels))
    x = alt.X("sure:Q", title="confidence (%)", scale=alt.Scale(domain=[0, 100]), axis=alt.Axis(tickCount=5))
    y = alt.Y("right:Q", title="accuracy (%)", scale=alt.Scale(domain=[0, 100]), axis=alt.Axis(tickCount=5))
    tips = ["run:N", "sure:Q", "right:Q", "images:Q"]
    size = alt.Size("images:Q", scale=alt.Scale(range=[20, 220]), legend=None)
    base = chart(rows).encode(x=x, y=y, color=color)
    diagonal = chart([{"sure": end, "right": end} for end in (0, 100)]).encode(x=x, y=y)
    spec = alt.layer(
        diagonal.mark_line(style="reference"),
        base.mark_line(strokeWidth=1.6),
        base.mark_point(filled=True, opacity=1).encode(size=size, tooltip=tips),
    )
    caption = (
        f"Reliability of the reported heads on the test set after the last epoch: accuracy of the images in each of "
        f"{BINS} bins of confidence against their mean confidence, pooled over seeds; points below the "
        f"diagonal are overconfident. Larger points hold more images; bins of fewer than {LEAST_IMAGES} are left out. "
        "ECE: mean and sample std over seeds."
    )
    if more := len(groups) - len(chosen):
        caption += f" Shown are the baseline and the most accurate groups; {more} more are left out."
    return Chart(name="reliability", spec=spec.properties(width="container", height=380), caption=caption)
