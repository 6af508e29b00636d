"""Is distillation sensitive to its settings: does accuracy vary more over them than over seeds?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance

import altair as alt
from scipy import stats

from kdschemes.report.analyses import evidence
from kdschemes.report.analyses.evidence import CONTRADICTED, INCONCLUSIVE, NO_VERDICT, SUPPORTED
from kdschemes.report.charts.base import chart
from kdschemes.report.document import Chart, Section, Table
from kdschemes.report.formatting import accuracy, mean_std, probability
from kdschemes.report.groups import Group
from kdschemes.report.statistics import LEAST_SEEDS, LEVEL, BySeed

TITLE = "Sensitivity: variation over settings against variation over seeds"

RULE = (
    f"Rule: the settings' means are compared by an F test with the seeds as blocks. If they differ significantly, "
    f"p < {LEVEL:g}, the claim is {SUPPORTED} if the settings' own std is above that over seeds, and "
    f"{CONTRADICTED} if it is not; otherwise it is {INCONCLUSIVE}. There is {NO_VERDICT}."
)


@dataclass(frozen=True, kw_only=True)
class Variation:
    """Accuracies y of P settings x S seeds, all in percent.

    `settings` is the sample std of the settings' means; `own` is what remains of it without the part that
    seeds alone would give: sqrt(max(0, (MS_settings - MS_rest) / S)). `seeds` is the std over seeds at one
    setting, sqrt(mean of the variances). F = MS_settings / MS_rest with P - 1 and (P - 1)(S - 1) degrees of freedom,
    MS_rest from y_ps - mean_p - mean_s + mean. p is NaN if F is undefined.
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
            return INCONCLUSIVE
        return SUPPORTED if self.own > self.seeds else CONTRADICTED


def sensitivity(groups: Sequence[Group]) -> list[Section]:
    """Return how accuracy varies over the settings (the groups) and over seeds."""
    found, left_out = evidence.by_point(groups, lambda group: group.label.partition(" (")[0])
    notes = [*evidence.missing(groups), *left_out]
    accuracies = {label: values for label, group in found.items() if (values := accuracy(group))}
    variation = measure(accuracies)
    if variation is None:
        why = "Nothing to compare yet: this needs at least two settings with runs of the same two seeds."
        return [Section(title=TITLE, text=evidence.paragraphs(notes, why))]
    ordered = sorted(accuracies, key=lambda label: -fmean(accuracies[label].values()))
    best, worst = ordered[0], ordered[-1]
    shown = {label: mean_std(accuracies[label].values(), 2) for label in ordered}
    tested = "no variation at all" if math.isnan(variation.p) else f"F = {variation.f:.2f}, {probability(variation.p)}"
    claim = (
        f"Distillation is sensitive to its settings: **{variation.verdict}** (std over {variation.points} "
        f"settings {variation.settings:.2f} points, {variation.own:.2f} without what seeds alone would give, over "
        f"{variation.n} seeds {variation.seeds:.2f}; {tested})."
    )
    ends = (
        f"The best is {best} with {shown[best]} %, the worst {worst} with {shown[worst]} %, "
        "test top-1 after the last epoch. The best of many profits from chance."
    )
    rows = [[label, shown[label], str(len(accuracies[label]))] for label in ordered]
    columns = ("setting", "test top-1 %", "seeds")
    table = Table(columns=columns, rows=rows, caption="Mean ± sample std over seeds, the best first.")
    text = evidence.paragraphs(claim, ends, notes, RULE)
    return [Section(title=TITLE, text=text, tables=[table], charts=[_chart(accuracies, ordered)])]


def measure(accuracies: Mapping[str, BySeed]) -> Variation | None:
    """Return the variation over settings and over the seeds that all of them have; None with fewer than 2 of either."""
    seeds = sorted(set.intersection(*map(set, accuracies.values()))) if accuracies else []
    points, n = len(accuracies), len(seeds)
    if points < 2 or n < 2:
        return None
    rows = [[values[seed] for seed in seeds] for values in accuracies.values()]
    of_points, of_seeds = [fmean(row) for row in rows], [fmean(column) for column in zip(*rows, strict=True)]
    mean, between = fmean(of_points), variance(of_points)
    freedom = (points - 1) * (n - 1)
    residuals = [
        value - of_point - of_seed + mean
        for row, of_point in zip(rows, of_points, strict=True)
        for value, of_seed in zip(row, of_seeds, strict=True)
    ]
    rest = sum(residual**2 for residual in residuals) / freedom
    f = n * between / rest if rest > 0 else math.inf if between > 0 else math.nan
    return Variation(
        points=points,
        n=n,
        settings=math.sqrt(between),
        own=math.sqrt(max(0.0, between - rest / n)),
        seeds=math.sqrt(fmean(map(variance, rows))),
        f=f,
        p=float(stats.f.sf(f, points - 1, freedom)),
    )


def _chart(accuracies: Mapping[str, BySeed], ordered: Sequence[str]) -> Chart:
    values = [{"setting": label, "top1": top1, "seed": n} for label in ordered for n, top1 in accuracies[label].items()]
    base = chart(values).encode(y=alt.Y("setting:N", sort=list(ordered), title=None))
    x = alt.X("top1:Q", scale=alt.Scale(zero=False), title="test top-1 (%)")
    spec = alt.layer(
        base.mark_point(filled=True, opacity=0.6).encode(x=x, tooltip=["setting:N", "seed:Q", "top1:Q"]),
        base.mark_tick(thickness=2).encode(x=alt.X("mean(top1):Q")),
    )
    caption = "Dots are seeds, bars are means."
    return Chart(name="sensitivity", spec=spec.properties(width="container"), caption=caption)
