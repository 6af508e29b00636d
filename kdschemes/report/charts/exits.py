"""Early exit: accuracy of each exit, and of samples that exit once confident, against cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from kdschemes.config.parse import parse_json
from kdschemes.report.charts.base import chart, percents
from kdschemes.report.colors import Hue
from kdschemes.report.document import Chart, Section
from kdschemes.report.formatting import mean_of
from kdschemes.report.groups import Group, Member

ANYTIME, BUDGETED, STATIC = "all at one exit", "each at its first confident exit", "without exits"

LABELED = 2
"""Maximum number of groups for which the chart names the exits."""


def exits(groups: Sequence[Group], hue: Hue) -> Section | None:
    """Return accuracy against multiply-accumulates for groups whose networks have exits; None if there are none."""
    rows: list[dict[str, Any]] = []
    notes = []
    for group in groups:
        with_exits = [member for member in group.finished if (member.results or {}).get("early_exit")]
        found = [one for member in with_exits if (one := _read(member))]
        if with_exits and len(found) < len(with_exits):
            notes.append(f"{group.label}: early_exit.json is missing in {len(with_exits) - len(found)} of its runs.")
        if found:
            named = {"run": group.label, "hue": hue.of[group.label], "seeds": len(found)}
            rows += [named | row for row in _rows(found)]
    if not rows:
        return Section(title="Early exit", text=" ".join(notes)) if notes else None
    return Section(title="Early exit", text=" ".join(notes), charts=[_chart(rows, hue)])


def _read(member: Member) -> dict[str, Any] | None:
    try:
        found = parse_json((member.folder / "early_exit.json").read_bytes())
        points = [*found["exits"].values(), found["static"], *(found["curve"] or ())]
        return found if all(float(point[key]) >= 0 for point in points for key in ("macs", "top1")) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _rows(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the points of one group, each the mean over its seeds."""
    rows = [
        _mean([one["exits"][name] for one in found if name in one["exits"]])
        | {"decision": ANYTIME, "exit": name.rpartition("/")[2] if "/" in name else "end"}
        for name in found[0]["exits"]
    ]
    curves = [one["curve"] for one in found if one.get("curve")]
    rows += [_mean(at) | {"decision": BUDGETED} for at in zip(*curves, strict=False)]
    return [*rows, _mean([one["static"] for one in found]) | {"decision": STATIC}]


def _mean(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "macs": round(mean_of([float(point["macs"]) for point in points])),
        "top1": round(mean_of([float(point["top1"]) for point in points]), 3),
    }


def _chart(rows: Sequence[dict[str, Any]], hue: Hue) -> Chart:
    axis, scale = alt.Axis(format="~s", tickCount=6), alt.Scale(zero=False, nice=False, padding=16)
    x = alt.X("macs:Q", title="multiply-accumulates per image (mean)", axis=axis, scale=scale)
    y = alt.Y("top1:Q", title="test top-1 (%)", scale=percents(row["top1"] for row in rows))
    kinds = [BUDGETED, ANYTIME, STATIC]
    shapes = alt.Scale(domain=kinds, range=["circle", "square", "diamond"])
    shape = alt.Shape("decision:N", scale=shapes, title=None, sort=kinds)
    tips = ["run:N", "decision:N", "exit:N", "macs:Q", "top1:Q", "seeds:Q"]

    color = hue.only(row["hue"] for row in rows).color()

    def of(decision: str) -> alt.Chart:
        return chart([row for row in rows if row["decision"] == decision]).encode(x=x, y=y, color=color)

    layers = [
        of(BUDGETED).mark_line().encode(detail="run:N", order="macs:Q"),
        of(ANYTIME).mark_line(opacity=0.8, strokeDash=[5, 3]).encode(detail="run:N", order="macs:Q"),
        *(
            of(kind).mark_point(filled=True, opacity=1, size=size).encode(shape=shape, tooltip=tips)
            for kind, size in ((BUDGETED, 22), (ANYTIME, 64), (STATIC, 150))
        ),
    ]
    if len({row["run"] for row in rows}) <= LABELED:
        layers.append(of(ANYTIME).mark_text(dy=16, fontSize=11).encode(text="exit:N"))
    caption = (
        "Test top-1 against multiply-accumulates after the last epoch, means over seeds: every image classified at the "
        "same exit; each at the first exit that is confident enough, for 25 budgets with thresholds chosen on "
        "validation; and the same network without exits."
    )
    return Chart(name="exits", spec=alt.layer(*layers).properties(width="container", height=340), caption=caption)
