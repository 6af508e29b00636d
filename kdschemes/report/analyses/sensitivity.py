"""Is distillation sensitive to its settings: does accuracy vary more over them than over seeds?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import altair as alt
from scipy import stats

from kdschemes.report.analyses.evidence import (
    BORNE_OUT,
    NO_VERDICT,
    NOT_BORNE_OUT,
    NOT_TOLD_APART,
    BySeed,
    by_point,
    missing,
    paragraphs,
    probability,
)
from kdschemes.report.charts.base import chart
from kdschemes.report.document import Chart, Section, Table
from kdschemes.report.formatting import accuracy, mean_std
from kdschemes.report.groups import Group
from kdschemes.report.statistics import LEAST_SEEDS, LEVEL

TITLE = "Sensitivity: spread over the settings against spread over seeds"

RULE = (
    f"Rule: settings and seeds are told apart where the settings' means differ by an F test with the seeds as blocks, "
    f"p < {LEVEL:g}. Then the claim is {BORNE_OUT} if the settings' own deviation is above that over seeds, and "
    f"{NOT_BORNE_OUT} if it is not; without such a p they are {NOT_TOLD_APART}; there is {NO_VERDICT}."
)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Accuracies y of P settings x S seeds, all in percent points.

    `settings` is the sample deviation of the settings' means; `own` what is left of it when the part is taken away that
    seeds alone would give: sqrt(max(0, (MS_settings - MS_rest) / S)). `seeds` is the deviation over seeds at one
    setting, sqrt(mean of the variances). F = MS_settings / MS_rest with P - 1 and (P - 1)(S - 1) degrees of freedom,
    MS_rest from y_ps - mean_p - mean_s + mean. p is NaN where F is not defined.
    """

    points: int
    n: int
    settings: float
    own: float
    seeds: float
    f: float
    p: float

    @property
    def verdict(self) -> str:
        """The verdict by `RULE` on the claim that accuracy is sensitive to the settings."""
        if self.n < LEAST_SEEDS:
            return NO_VERDICT
        if math.isnan(self.p) or self.p >= LEVEL:
            return NOT_TOLD_APART
        return BORNE_OUT if self.own > self.seeds else NOT_BORNE_OUT


def sensitivity(groups: Sequence[Group]) -> list[Section]:
    """Return how accuracy varies over the settings (the groups) and over the seeds."""
    found, left_out = by_point(groups, lambda group: group.label.partition(" (")[0])
    notes = [*missing(groups), *left_out]
    accuracies = {label: values for label, group in found.items() if (values := accuracy(group))}
    spread_of = measure(accuracies)
    if spread_of is None:
        why = "There is nothing to compare yet: at least two settings need runs of the same two seeds."
        return [Section(title=TITLE, text=paragraphs(notes, why))]
    ordered = sorted(accuracies, key=lambda label: -fmean(accuracies[label].values()))
    best, worst = ordered[0], ordered[-1]
    claim = (
        f"Distillation is sensitive to its settings: **{spread_of.verdict}** (deviation over {spread_of.points} "
        f"settings {spread_of.settings:.2f} points, {spread_of.own:.2f} without what seeds alone would give, over "
        f"{spread_of.n} seeds {spread_of.seeds:.2f}; {_tested(spread_of)})."
    )
    ends = (
        f"Best of all is {best} with {_mean(accuracies[best])} %, worst {worst} with {_mean(accuracies[worst])} %, "
        "test top-1 after the last epoch. The best of many is flattered by chance."
    )
    rows = [[label, mean_std(list(accuracies[label].values()), 2), str(len(accuracies[label]))] for label in ordered]
    columns = ("setting", "test top-1 %", "seeds")
    return [
        Section(
            title=TITLE,
            text=paragraphs(claim, ends, notes, RULE),
            tables=[Table(columns=columns, rows=rows, caption="Mean ± sample deviation over seeds, the best first.")],
            charts=[Chart(name="sensitivity", spec=_chart(accuracies, ordered), caption="Dots are seeds, bars means.")],
        )
    ]


def measure(accuracies: Mapping[str, BySeed]) -> Spread | None:
    """Return the spread over settings and over the seeds that all of them have; None below 2 of either."""
    seeds = sorted(set.intersection(*map(set, accuracies.values()))) if accuracies else []
    points, n = len(accuracies), len(seeds)
    if points < 2 or n < 2:
        return None
    rows = [[values[seed] for seed in seeds] for values in accuracies.values()]
    of_points, of_seeds = [fmean(row) for row in rows], [fmean(column) for column in zip(*rows, strict=True)]
    mean = fmean(of_points)
    variance = sum((one - mean) ** 2 for one in of_points) / (points - 1)
    freedom = (points - 1) * (n - 1)
    rest = (
        sum(
            (value - of_point - of_seed + mean) ** 2
            for row, of_point in zip(rows, of_points, strict=True)
            for value, of_seed in zip(row, of_seeds, strict=True)
        )
        / freedom
    )
    within = fmean(
        sum((value - of_point) ** 2 for value in row) / (n - 1) for row, of_point in zip(rows, of_points, strict=True)
    )
    f = n * variance / rest if rest > 0 else math.inf if variance > 0 else math.nan
    return Spread(
        points=points,
        n=n,
        settings=math.sqrt(variance),
        own=math.sqrt(max(0.0, variance - rest / n)),
        seeds=math.sqrt(within),
        f=f,
        p=float(stats.f.sf(f, points - 1, freedom)),
    )


def _tested(found: Spread) -> str:
    return f"F = {found.f:.2f}, {probability(found.p)}" if found.p == found.p else "no variation at all"


def _mean(values: BySeed) -> str:
    return mean_std(list(values.values()), 2)


def _chart(accuracies: Mapping[str, BySeed], ordered: Sequence[str]) -> alt.TopLevelMixin:
    values = [
        {"setting": label, "top1": value, "seed": seed}
        for label in ordered
        for seed, value in accuracies[label].items()
    ]
    base = chart(values).encode(y=alt.Y("setting:N", sort=list(ordered), title=None))
    x = alt.X("top1:Q", scale=alt.Scale(zero=False), title="test top-1 (%)")
    return alt.layer(
        base.mark_point(filled=True, opacity=0.6).encode(x=x, tooltip=["setting:N", "seed:Q", "top1:Q"]),
        base.mark_tick(thickness=2).encode(x=alt.X("mean(top1):Q")),
    ).properties(width="container")
