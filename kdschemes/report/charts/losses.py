"""Training losses over epochs: the weighted total and each term before its weight."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from kdschemes.errors import UserError
from kdschemes.report.charts.base import WIDE, chart, epochs
from kdschemes.report.charts.curves import alone
from kdschemes.report.colors import Hue
from kdschemes.report.document import Chart, Section
from kdschemes.report.formatting import mean_of
from kdschemes.report.groups import Group, Member
from kdschemes.tracking.metrics_log import read_rows

MOST_TERMS = 6
"""Maximum number of charts: the total and the terms that most groups have."""

MOST_POINTS = 60
"""Maximum number of points of a line; of a longer log, equal parts are averaged."""

TOTAL = "total"

Line = list[tuple[float, float]]
"""Epochs and losses."""


def losses(groups: Sequence[Group], hue: Hue) -> Section | None:
    """Return a chart for the total and for each term, with a line for each group; None if nothing was logged."""
    found = {group.label: terms for group in groups if (terms := _mean_terms(group))}
    counts = Counter(term for terms in found.values() for term in terms)
    if len(counts) == 2:
        del counts[TOTAL]  # it is the only term
    names = sorted(counts, key=lambda term: (term != TOTAL, -counts[term]))
    left_out = names[MOST_TERMS:]
    charts = [_chart(f"loss_{number}", term, found, hue) for number, term in enumerate(names[:MOST_TERMS], 1)]
    text = f"Left out, terms of fewer groups: {', '.join(left_out)}." if left_out else ""
    return Section(title="Training losses", text=text, charts=charts) if charts else None


def terms_of(member: Member) -> dict[str, Line]:
    """Return each loss that a run has logged, by term, averaged over equal parts of a long log; {} if there is none."""
    found: dict[str, Line] = {}
    try:
        for row in read_rows(member.folder / "metrics.jsonl"):
            for key in row if row.get("kind") == "train" else ():
                if key.startswith("loss/"):
                    found.setdefault(key.removeprefix("loss/"), []).append((float(row["epoch"]), float(row[key])))
    except (UserError, KeyError, TypeError, ValueError):
        return {}
    return {term: _averaged(line) for term, line in found.items()}


def _averaged(line: Line) -> Line:
    size = max(1, math.ceil(len(line) / MOST_POINTS))
    parts = [line[start : start + size] for start in range(0, len(line), size)]
    return [(part[-1][0], mean_of([value for _, value in part])) for part in parts]


def _mean_terms(group: Group) -> dict[str, Line]:
    """Return the losses of a group, means over its finished runs, or over all while none is finished."""
    runs = [terms for member in group.finished or group.members if (terms := terms_of(member))]
    found: dict[str, Line] = {}
    for term in runs[0] if runs else ():
        lines = [dict(terms.get(term, ())) for terms in runs]
        shared = sorted(set.intersection(*map(set, lines)))
        found[term] = [
            (epoch, mean) for epoch in shared if math.isfinite(mean := mean_of([line[epoch] for line in lines]))
        ]
    return {term: line for term, line in found.items() if line}


def _chart(name: str, term: str, found: Mapping[str, Mapping[str, Line]], hue: Hue) -> Chart:
    rows: list[dict[str, Any]] = [
        {"run": label, "hue": hue.of[label], "dash": hue.dash_of(label)}
        | {"epoch": round(epoch, 3), "loss": float(f"{loss:.4g}")}
        for label, terms in found.items()
        for epoch, loss in terms.get(term, ())
    ]
    values = [row["loss"] for row in rows]
    wide = min(values) > 0 and max(values) / min(values) > WIDE
    scale = alt.Scale(type="log", nice=False) if wide else alt.Scale(zero=False, nice=False)
    title = "total, weighted" if term == TOTAL else term
    tips = ["run:N", "epoch:Q", "loss:Q"]
    shown = hue.only(row["hue"] for row in rows)
    x, y = epochs(float(max(row["epoch"] for row in rows))), alt.Y("loss:Q", title=title, scale=scale)
    base = chart(rows).encode(x=x, y=y, color=shown.color(), detail="run:N")
    layers = [base.mark_line().encode(strokeDash=shown.dash())]
    if single := alone(rows):
        of_single = chart(single).encode(x=x, y=y, color=shown.color())
        layers.append(of_single.mark_point(filled=True, size=70, opacity=1).encode(tooltip=tips))
    layers.append(base.mark_point(filled=True, opacity=0, size=120).encode(tooltip=tips))
    caption = (
        f"Training loss: {title}, {'the sum of all terms' if term == TOTAL else 'before its weight'}; mean over seeds."
    )
    return Chart(name=name, spec=alt.layer(*layers).properties(width="container", height=240), caption=caption)
