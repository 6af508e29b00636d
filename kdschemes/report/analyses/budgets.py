"""Schemes on equal budgets: accuracy for the same number of epochs and for the same training compute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import altair as alt

from kdschemes.report.analyses import evidence
from kdschemes.report.charts.base import chart, percents
from kdschemes.report.document import Chart, Section, Table
from kdschemes.report.formatting import NOTHING, accuracy, mean_std, training_compute, training_macs
from kdschemes.report.groups import Group
from kdschemes.report.statistics import paired
from kdschemes.storage.results import read_results
from kdschemes.tracking.tables import count_text

TITLE = "Equal epochs, equal compute"

TOLERANCE = 0.1
"""Relative difference to the most expensive run's compute up to which two runs count as equal."""


def budgets(groups: Sequence[Group]) -> list[Section]:
    """Return the training cost of each group and how it compares with cross-entropy on the same budget.

    The budgets are the number of epochs that most groups have and the training compute of the most expensive group.
    """
    costs = {group.label: found[0] for group in groups if not group.earlier and (found := training_macs(group))}
    named = {group.label: group for group in groups if group.label in costs}
    notes = evidence.missing(groups)
    if not costs:
        why = "No finished run has recorded its training compute yet."
        return [Section(title=TITLE, text=evidence.paragraphs(notes, why))]
    dearest = max(costs, key=lambda label: costs[label])
    epochs = {label: int(group.results[0]["epochs"]) for label, group in named.items()}
    usual = Counter(epochs.values()).most_common(1)[0][0]
    compared = {
        f"{usual} epochs": [label for label in named if epochs[label] == usual],
        "equal compute": equal_compute(costs, costs[dearest]),
    }
    explanation = (
        f"The most expensive run is {dearest}: {epochs[dearest]} epochs, {count_text(costs[dearest])} "
        "multiply-accumulates. "
        "Compute counts 3 forward passes for trained and 1 for frozen networks, times images, times epochs; equal "
        f"means within {100 * TOLERANCE:g} % of it."
    )
    top1 = {label: mean_std(accuracy(group).values(), 2) for label, group in named.items()}
    rows = [
        [label, str(epochs[label]), count_text(cost), f"{100 * cost / costs[dearest]:.0f} %", top1[label]]
        for label, cost in costs.items()
    ]
    columns = ("run", "epochs", "training MACs", "of the most expensive", "test top-1 %")
    caption = "Mean ± sample std over seeds, after the last epoch."
    overview = Section(
        title=TITLE,
        text=evidence.paragraphs(explanation, _teachers(named[dearest], costs[dearest]), notes),
        tables=[Table(columns=columns, rows=rows, caption=caption)],
        charts=[_chart(named, costs)],
    )
    return [overview, *(_compared(budget, [named[label] for label in labels]) for budget, labels in compared.items())]


def equal_compute(costs: Mapping[str, float], budget: float) -> list[str]:
    """Return the labels whose compute is within `TOLERANCE` of the budget."""
    return [label for label, cost in costs.items() if abs(cost - budget) <= TOLERANCE * budget]


def _compared(budget: str, groups: Sequence[Group]) -> Section:
    title = f"Against cross-entropy, {budget}"
    base = next((group for group in groups if evidence.method(group) == evidence.CROSS_ENTROPY), None)
    others = [group for group in groups if group is not base]
    if base is None or not others:
        why = "Not enough finished runs: cross-entropy and at least one other method are needed."
        return Section(title=title, text=why)
    tests = [paired(accuracy(group), accuracy(base)) for group in others]
    rows = [
        [
            group.label,
            f"{test.mean_difference:+z.2f}",
            f"{test.low:+z.2f} to {test.high:+z.2f}" if test.n > 1 else NOTHING,
            *cells,
        ]
        for group, test, cells in zip(others, tests, evidence.verdict_cells(tests), strict=True)
    ]
    columns = ("run", f"difference to {base.label}", "95 % interval", "p (Holm)", "verdict")
    caption = "Points of test top-1 after the last epoch, paired by seed, two-sided t test."
    return Section(title=title, tables=[Table(columns=columns, rows=rows, caption=caption)])


def _teachers(group: Group, cost: float) -> str:
    """Return the cost of training a group's teachers, which its own cost does not include; "" if it is unknown."""
    checkpoints = group.results[0].get("teacher_checkpoint") or []
    names = [checkpoints] if isinstance(checkpoints, str) else checkpoints
    total = sum(_compute(group.finished[0].folder.parent / Path(name).name) for name in names)
    if not total:
        return ""
    return (
        f"The teacher's own training, done once for all students, is not included: {count_text(total)}, "
        f"{total / cost:.1f} times as much."
    )


def _compute(folder: Path) -> float:
    try:
        return training_compute(read_results(folder) or {}) or 0.0
    except (OSError, ValueError, TypeError, KeyError):
        return 0.0


def _chart(named: Mapping[str, Group], costs: Mapping[str, float]) -> Chart:
    values: list[dict[str, Any]] = [
        {
            "compute": costs[label] / 1e12,
            "top1": fmean(found),
            "run": label,
            "method": " ".join(evidence.method(group)),
            "epochs": str(group.results[0]["epochs"]),
        }
        for label, group in named.items()
        if (found := accuracy(group).values())
    ]
    methods = list(dict.fromkeys(str(value["method"]) for value in values))
    epochs = sorted({str(value["epochs"]) for value in values}, key=int)
    spec = (
        chart(values)
        .mark_point(filled=True, size=80)
        .encode(
            x=alt.X("compute:Q", scale=alt.Scale(zero=False), title="training compute (10^12 multiply-accumulates)"),
            y=alt.Y("top1:Q", scale=percents(value["top1"] for value in values), title="test top-1 (%)"),
            color=alt.Color("method:N", title=None, sort=methods),
            shape=alt.Shape("epochs:N", title="epochs", sort=epochs),
            tooltip=["run:N", "epochs:N", "compute:Q", "top1:Q"],
        )
        .properties(width="container")
    )
    return Chart(name="budgets", spec=spec, caption="Means over seeds.")
