"""The picture of a report: validation accuracy over epochs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from io import BytesIO

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kdschemes.curves import STYLES
from kdschemes.errors import UserError
from kdschemes.report.groups import Group, Member
from kdschemes.track import read_rows

Curve = dict[int, float]
"""Validation top-1 in percent by epoch."""


def draw(groups: Sequence[Group]) -> bytes | None:
    """Return a PNG of the reported head's top-1 on the validation split; None where nothing was evaluated yet.

    A line is the mean over a group's finished runs at the epochs that all of them have, its band reaches from the
    least to the most. Runs that are not finished are dotted lines of their own.
    """
    figure = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    lowest = []
    for number, group in enumerate(groups):
        style = STYLES[number % len(STYLES)]
        finished = [found for member in group.finished if (found := curve(member))]
        started = [found for member in group.members if member.results is None and (found := curve(member))]
        label = f"{group.label} ({len(finished)} {'seed' if len(finished) == 1 else 'seeds'})"
        if finished:
            epochs, columns = common(finished)
            means = [statistics.fmean(column) for column in columns]
            axes.plot(epochs, means, label=label, linewidth=1.8, color=style["color"], linestyle=style["linestyle"])
            axes.fill_between(
                epochs, list(map(min, columns)), list(map(max, columns)), color=style["color"], alpha=0.15, linewidth=0
            )
            lowest += means[len(means) // 3 :]
        for one in started:
            name = f"{group.label} (not finished)" if not finished and one is started[0] else None
            axes.plot(list(one), list(one.values()), label=name, color=style["color"], linestyle=":", linewidth=1.2)
    if not axes.lines:
        return None
    axes.set(xlabel="epoch", ylabel="validation top-1 (%)")
    if lowest:
        axes.set_ylim(max(0.0, min(lowest) - 3.0), min(100.5, axes.get_ylim()[1]))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    png = BytesIO()
    figure.savefig(png, format="png", dpi=150)
    return png.getvalue()


def common(curves: Sequence[Curve]) -> tuple[list[int], list[list[float]]]:
    """Return the epochs that all curves have, and the values at each."""
    epochs = sorted(set.intersection(*(set(curve) for curve in curves)))
    return epochs, [[curve[epoch] for curve in curves] for epoch in epochs]


def curve(member: Member) -> Curve:
    """Return the curve of a run's reported head, which is the first of each line of `metrics.jsonl`; {} without any."""
    try:
        rows = read_rows(member.folder / "metrics.jsonl")
    except UserError:
        return {}
    found: Curve = {}
    for row in rows:
        if row.get("kind") == "eval" and row.get("split") == "val":
            found[row["epoch"]] = float(next(value for key, value in row.items() if key.endswith("/top1")))
    return found
