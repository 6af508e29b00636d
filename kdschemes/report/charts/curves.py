"""Learning curves: the reported heads on the validation split, over epochs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from kdschemes.errors import UserError
from kdschemes.report.charts.base import WIDE, chart, epochs
from kdschemes.report.colors import FEW, Hue
from kdschemes.report.document import Chart, Section
from kdschemes.report.formatting import mean_of
from kdschemes.report.groups import Group, Member
from kdschemes.tracking.metrics_log import read_rows

Curve = dict[int, float]
"""A metric on the validation split by epoch."""

MOST_POINTS = 100
"""Maximum number of epochs drawn per line; of longer ones every second, third, ... and the last."""


@dataclass(frozen=True, kw_only=True)
class _Kind:
    name: str
    metric: str
    title: str
    digits: int


KINDS = (
    _Kind(name="curves", metric="top1", title="validation top-1 (%)", digits=2),
    _Kind(name="nll_curves", metric="nll", title="validation NLL (nats)", digits=4),
)


def curves(groups: Sequence[Group], hue: Hue) -> Section | None:
    """Return the curves of top-1 and NLL; None if nothing was evaluated yet."""
    charts = [chart for kind in KINDS if (chart := _chart(kind, groups, hue))]
    return Section(title="Learning curves", charts=charts) if charts else None


def curve(member: Member, metric: str = "top1") -> Curve:
    """Return the curve of a run's reported head, the first in each line of `metrics.jsonl`; {} if there is none."""
    found: Curve = {}
    try:
        for row in read_rows(member.folder / "metrics.jsonl"):
            if row.get("kind") == "eval" and row.get("split") == "val":
                head, _, main = next(key for key in row if key.endswith(("/top1", "/map"))).rpartition("/")
                key = f"{head}/{main if metric == 'top1' else metric}"
                if key in row:
                    found[int(row["epoch"])] = float(row[key])
    except (UserError, KeyError, TypeError, ValueError, StopIteration):
        return {}
    return found


def common(curves: Sequence[Curve]) -> tuple[list[int], list[list[float]]]:
    """Return the epochs that all curves have, and the values at each."""
    shared = sorted(set.intersection(*(set(curve) for curve in curves)))
    return shared, [[curve[epoch] for curve in curves] for epoch in shared]


def thinned(epochs: Sequence[int], most: int = MOST_POINTS) -> list[int]:
    """Return every k-th position of a list and its last one, at most `most` positions."""
    step = max(1, math.ceil(len(epochs) / most))
    return list(range(len(epochs) - 1, -1, -step))[::-1]


def _chart(kind: _Kind, groups: Sequence[Group], hue: Hue) -> Chart | None:
    finished: list[dict[str, Any]] = []
    started: list[dict[str, Any]] = []
    lowest: list[float] = []
    highest: list[float] = []
    for group in groups:
        named = {"hue": hue.of[group.label], "run": group.label, "dash": hue.dash_of(group.label)}
        found = [one for member in group.finished if (one := curve(member, kind.metric))]
        if found:
            lines = _mean_rows(found, kind.digits)
            finished += [named | {"seeds": len(found)} | line for line in lines]
            settled = [line["mean"] for line in lines[len(lines) // 3 :]]
            lowest, highest = [*lowest, *settled], [*highest, *settled]
        for member in group.members:
            if member.results is None and (one := curve(member, kind.metric)):
                shown = {epoch: round(value, kind.digits) for epoch, value in one.items() if math.isfinite(value)}
                name = f"{group.label} seed={member.row.entry.seed}, not finished"
                started += [named | {"run": name, "epoch": epoch, "mean": mean} for epoch, mean in shown.items()]
                highest += shown.values()
    if not finished and not started:
        return None
    x = epochs(float(max(row["epoch"] for row in [*finished, *started])))
    scale = _scale(kind, lowest, highest)
    y = alt.Y("mean:Q", title=kind.title, scale=scale)
    color = hue.color()
    layers: list[alt.Chart] = []
    if finished:
        tips = ["run:N", "epoch:Q", alt.Tooltip("mean:Q", title=kind.title), "seeds:Q"]
        base = chart(finished).encode(x=x, color=color, detail="run:N")
        if len(groups) <= FEW and any("low" in row for row in finished):
            low = alt.Y("low:Q", title=kind.title, scale=scale)
            layers.append(base.mark_area(opacity=0.16, clip=True, line=False).encode(y=low, y2="high:Q"))
        layers.append(base.mark_line(clip=True).encode(y=y, strokeDash=hue.dash()))
        if len(groups) <= FEW:
            layers.append(base.mark_point(opacity=0, size=120, clip=True).encode(y=y, tooltip=tips))
    if started:
        base = chart(started).encode(x=x, y=y, color=color, detail="run:N")
        layers.append(base.mark_line(clip=True, strokeDash=[1, 3], strokeCap="round").encode(tooltip=["run:N"]))
    if single := alone([*finished, *started]):
        base = chart(single).encode(x=x, color=color)
        layers.append(base.mark_point(filled=True, size=70, opacity=1).encode(y=y, tooltip=["run:N", "mean:Q"]))
        if any("low" in row for row in single):
            layers.append(base.mark_rule(strokeWidth=1.5, clip=True).encode(y=alt.Y("low:Q", scale=scale), y2="high:Q"))
    spec = alt.layer(*layers).properties(width="container", height=320)
    return Chart(name=kind.name, spec=spec, caption=_caption(kind, groups, bool(started)))


def alone(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows that are their run's only one, which no line shows."""
    counts = Counter(row["run"] for row in rows)
    return [row for row in rows if counts[row["run"]] == 1]


def _mean_rows(found: Sequence[Curve], digits: int) -> list[dict[str, Any]]:
    at, columns = common(found)
    rows: list[dict[str, Any]] = []
    for index in thinned(at):
        if not all(map(math.isfinite, columns[index])):
            continue
        row = {"epoch": at[index], "mean": round(mean_of(columns[index]), digits)}
        if len(found) > 1:
            row |= {"low": round(min(columns[index]), digits), "high": round(max(columns[index]), digits)}
        rows.append(row)
    return rows


def _scale(kind: _Kind, lowest: Sequence[float], highest: Sequence[float]) -> alt.Scale:
    """Return an axis that covers lines after their first third, so that their ends can be distinguished."""
    low, high = min(lowest or highest), max(highest)
    if kind.metric == "top1":
        room = 0.08 * (high - low) or 1.0
        return alt.Scale(domain=[max(0.0, round(low - 2 * room, 1)), min(100.0, round(high + room, 1))], nice=False)
    if low > 0 and high / low > WIDE:
        return alt.Scale(type="log", domain=[0.9 * low, 1.2 * high], nice=False)
    room = 0.1 * (high - low) or 0.1
    return alt.Scale(domain=[max(0.0, round(low - room, 3)), round(high + 2 * room, 3)], nice=False)


def _caption(kind: _Kind, groups: Sequence[Group], started: bool) -> str:
    words = f"{kind.title[0].upper()}{kind.title[1:]} of the reported heads. Lines: mean over finished seeds"
    words += ", with a band from the minimum to the maximum." if len(groups) <= FEW else "."
    if started:
        words += " Dotted: single runs that are not finished."
    return words + " The axis covers the values after the first third."
