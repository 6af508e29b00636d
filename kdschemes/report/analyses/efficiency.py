"""Does distillation learn more efficiently: is it better with the same images, or as good in fewer epochs?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import altair as alt

from kdschemes.report.analyses.evidence import (
    RULE,
    BySeed,
    by_point,
    evaluated,
    missing,
    paragraphs,
    probability,
    setting,
)
from kdschemes.report.charts.base import chart, percents
from kdschemes.report.charts.curves import Curve, curve
from kdschemes.report.document import Chart, Section, Table
from kdschemes.report.formatting import NOTHING, accuracy, mean_std
from kdschemes.report.groups import Group
from kdschemes.report.statistics import paired, verdicts
from kdschemes.report.style import INK, SERIES

ALONE, DISTILLED = "labels alone", "distilled"

SHARES = (0.5, 0.8, 0.9, 0.95, 1.0)
"""Fractions of the final accuracy of labels alone for which the number of epochs is reported."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One of the two ways of training, on one fraction of the training images."""

    way: str
    fraction: float


def efficiency(groups: Sequence[Group]) -> list[Section]:
    """Return test accuracy against the fraction of the images, and validation accuracy against epochs.

    Plain supervised runs are compared with distilled runs, by `data.train_fraction`.
    """
    found, left_out = by_point(groups, _point)
    notes = [*missing(groups), *left_out]
    return [_of_images(found, notes), _of_epochs(found, notes)]


def mean_over(accuracies: Mapping[float, BySeed]) -> BySeed:
    """Return the mean over fractions below 1 by seed, for the seeds that have all of them."""
    parts = [values for fraction, values in accuracies.items() if fraction < 1]
    seeds = set.intersection(*(set(values) for values in parts)) if parts else set()
    return {seed: fmean(values[seed] for values in parts) for seed in sorted(seeds)}


def epochs_to(found: Curve, level: float) -> int | None:
    """Return the first epoch whose accuracy is at least `level` percent; None if there is none."""
    return next((epoch for epoch, value in sorted(found.items()) if value >= level), None)


def _point(group: Group) -> Point | None:
    scheme, method = setting(group, "scheme.name"), setting(group, "scheme.method")
    way = DISTILLED if scheme == "offline" else ALONE if (scheme, method) == ("supervised", "ce") else None
    fraction = setting(group, "data.train_fraction")
    return None if way is None else Point(way=way, fraction=1.0 if fraction is None else float(fraction))


def _of_images(found: Mapping[Point, Group], notes: Sequence[str]) -> Section:
    accuracies: dict[str, dict[float, BySeed]] = {ALONE: {}, DISTILLED: {}}
    for point, group in found.items():
        accuracies[point.way][point.fraction] = accuracy(group)
    fractions = sorted(accuracies[ALONE].keys() & accuracies[DISTILLED].keys())
    title = "Efficiency: accuracy against the fraction of the training images"
    if not fractions:
        return Section(
            title=title, text=paragraphs(notes, "There is no fraction of the images with finished runs of both kinds.")
        )
    both = {way: {fraction: of[fraction] for fraction in fractions} for way, of in accuracies.items()}
    tests = [paired(both[DISTILLED][fraction], both[ALONE][fraction]) for fraction in fractions]
    rows = [
        [
            f"{100 * fraction:g} %",
            _images(found[Point(way=ALONE, fraction=fraction)]),
            *(mean_std(list(both[way][fraction].values()), 2) for way in (ALONE, DISTILLED)),
            f"{test.mean_difference:+z.2f}",
            NOTHING if p != p else probability(p),
            words,
        ]
        for fraction, test, (p, words) in zip(fractions, tests, verdicts(tests), strict=True)
    ]
    claim = evaluated(
        "Distillation learns more from the same images (mean over fractions below 100 %)",
        paired(mean_over(both[DISTILLED]), mean_over(both[ALONE])),
    )
    reading = (
        "Test top-1 in percent after the last epoch. All runs train for the same number of epochs, so smaller "
        "fractions take fewer "
        "steps, with and without a teacher. The teacher was trained on all images and also passes on what it learned "
        "from "
        "those that its students never see."
    )
    columns = ("images", "number", ALONE, DISTILLED, "difference", "p (Holm)", "verdict")
    return Section(
        title=title,
        text=paragraphs(claim, notes, reading, RULE),
        tables=[Table(columns=columns, rows=rows, caption="Mean ± sample std over seeds.")],
        charts=[Chart(name="efficiency_images", spec=_images_chart(both))],
    )


def _of_epochs(found: Mapping[Point, Group], notes: Sequence[str]) -> Section:
    title = "Efficiency: accuracy against epochs"
    fractions = [{point.fraction for point in found if point.way == way} for way in (ALONE, DISTILLED)]
    if not (common := fractions[0] & fractions[1]):
        return Section(
            title=title, text=paragraphs(notes, "There is no fraction of the images with finished runs of both kinds.")
        )
    fraction = max(common)
    curves: dict[str, dict[int, Curve]] = {}
    for way in (ALONE, DISTILLED):
        members = found[Point(way=way, fraction=fraction)].finished
        curves[way] = {member.row.entry.seed: of for member in members if (of := curve(member))}
    if not all(curves.values()):
        return Section(title=title, text=paragraphs(notes, "The runs have no validation split: nothing to compare."))
    reached = fmean(one[max(one)] for one in curves[ALONE].values())
    means = {way: {seed: fmean(one.values()) for seed, one in of.items()} for way, of in curves.items()}
    claim = evaluated(
        "Distillation learns in fewer epochs (validation top-1, mean over all epochs)",
        paired(means[DISTILLED], means[ALONE]),
    )
    reading = (
        f"Validation top-1 with {100 * fraction:g} % of the images. A run reaches a level at the first epoch at or "
        f"above it. Labels alone end at {reached:.2f} %; the levels are fractions of that."
    )
    rows = [
        [f"{share * reached:.2f} % ({100 * share:g} %)", *(_epochs(curves[way], share * reached) for way in curves)]
        for share in SHARES
    ]
    return Section(
        title=title,
        text=paragraphs(claim, notes, reading, RULE),
        tables=[Table(columns=("level", *(f"epochs, {way}" for way in curves)), rows=rows)],
        charts=[Chart(name="efficiency_epochs", spec=_epochs_chart(curves))],
    )


def _images(group: Group) -> str:
    results = group.finished[0].results
    return str(results["samples"]["train"]) if results is not None else NOTHING


def _epochs(curves: Mapping[int, Curve], level: float) -> str:
    found = [epoch for one in curves.values() if (epoch := epochs_to(one, level)) is not None]
    short = f" ({len(found)} of {len(curves)} seeds)" if len(found) < len(curves) else ""
    return f"{mean_std([float(epoch) for epoch in found], 1)}{short}"


def _color() -> alt.Color:
    return alt.Color("way:N", title=None, scale=alt.Scale(domain=[ALONE, DISTILLED], range=[INK, SERIES[0]]))


def _images_chart(both: Mapping[str, Mapping[float, BySeed]]) -> alt.TopLevelMixin:
    values: list[dict[str, Any]] = [
        {"images": 100 * fraction, "top1": value, "way": way, "seed": seed}
        for way, of in both.items()
        for fraction, by_seed in of.items()
        for seed, value in by_seed.items()
    ]
    base = chart(values).encode(
        x=alt.X("images:Q", scale=alt.Scale(type="log"), title="training images (% of all, log)"),
        color=_color(),
    )
    scale = percents(row["top1"] for row in values)
    y = alt.Y("mean(top1):Q", scale=scale, title="test top-1 (%)")
    return alt.layer(
        base.mark_line(point=True).encode(y=y),
        base.mark_point(opacity=0.4, size=20).encode(
            y=alt.Y("top1:Q", scale=scale), tooltip=["way:N", "images:Q", "top1:Q"]
        ),
    ).properties(width="container")


def _epochs_chart(curves: Mapping[str, Mapping[int, Curve]]) -> alt.TopLevelMixin:
    values: list[dict[str, Any]] = [
        {"epoch": epoch, "top1": value, "way": way}
        for way, of in curves.items()
        for one in of.values()
        for epoch, value in one.items()
    ]
    base = chart(values).encode(x=alt.X("epoch:Q", title="epoch"), color=_color())
    scale = percents(row["top1"] for row in values)
    y = alt.Y("mean(top1):Q", scale=scale, title="validation top-1 (%)")
    return alt.layer(
        base.mark_area(opacity=0.2).encode(y=alt.Y("min(top1):Q", scale=scale), y2=alt.Y2("max(top1):Q")),
        base.mark_line().encode(y=y),
    ).properties(width="container")
