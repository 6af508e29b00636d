"""Does distillation learn more efficiently: is it better with the same images, or as good in fewer epochs?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import altair as alt

from kdschemes.report.analyses import evidence
from kdschemes.report.charts.base import chart, percents
from kdschemes.report.charts.curves import Curve, curve
from kdschemes.report.document import Chart, Section, Table
from kdschemes.report.formatting import accuracy, mean_std
from kdschemes.report.groups import Group
from kdschemes.report.statistics import BySeed, mean_by_seed, paired
from kdschemes.report.style import INK, SERIES

ALONE, DISTILLED = WAYS = ("labels alone", "distilled")

OF_IMAGES = "Efficiency: accuracy against the fraction of the training images"

OF_EPOCHS = "Efficiency: accuracy against epochs"

Point = tuple[str, float]
"""One of the two ways of training, on one fraction of the training images."""

SHARES = (0.5, 0.8, 0.9, 0.95, 1.0)
"""Fractions of the final accuracy of labels alone for which the number of epochs is reported."""


def efficiency(groups: Sequence[Group]) -> list[Section]:
    """Return test accuracy against the fraction of the images, and validation accuracy against epochs.

    Plain supervised runs are compared with distilled runs, by `data.train_fraction`.
    """
    found, left_out = evidence.by_point(groups, _point)
    notes = [*evidence.missing(groups), *left_out]
    fractions = sorted(fraction for way, fraction in found if way == ALONE and (DISTILLED, fraction) in found)
    if not fractions:
        text = evidence.paragraphs(notes, "There is no fraction of the images with finished runs of both kinds.")
        return [Section(title=title, text=text) for title in (OF_IMAGES, OF_EPOCHS)]
    return [_of_images(found, fractions, notes), _of_epochs(found, fractions[-1], notes)]


def epochs_to(found: Curve, level: float) -> int | None:
    """Return the first epoch whose accuracy is at least `level` percent; None if there is none."""
    return next((epoch for epoch, value in sorted(found.items()) if value >= level), None)


def _point(group: Group) -> Point | None:
    is_distilled = evidence.setting(group, "scheme.name") == "offline"
    if not is_distilled and evidence.method(group) != evidence.CROSS_ENTROPY:
        return None
    fraction = evidence.setting(group, "data.train_fraction")
    return (DISTILLED if is_distilled else ALONE), (1.0 if fraction is None else float(fraction))


def _of_images(found: Mapping[Point, Group], fractions: Sequence[float], notes: Sequence[str]) -> Section:
    both = {way: {fraction: accuracy(found[way, fraction]) for fraction in fractions} for way in WAYS}
    tests = [paired(both[DISTILLED][fraction], both[ALONE][fraction]) for fraction in fractions]
    rows = [
        [
            f"{100 * fraction:g} %",
            str(found[ALONE, fraction].results[0]["samples"]["train"]),
            *(mean_std(both[way][fraction].values(), 2) for way in WAYS),
            f"{test.mean_difference:+z.2f}",
            *cells,
        ]
        for fraction, test, cells in zip(fractions, tests, evidence.verdict_cells(tests), strict=True)
    ]
    means = {way: mean_by_seed([of[fraction] for fraction in fractions if fraction < 1]) for way, of in both.items()}
    claim = evidence.evaluated(
        "Distillation learns more from the same images (mean over fractions below 100 %)",
        paired(means[DISTILLED], means[ALONE]),
    )
    reading = (
        "Test top-1 in percent after the last epoch. All runs train for the same number of epochs, so smaller "
        "fractions take fewer steps, with and without a teacher. The teacher was trained on all images and also "
        "passes on what it learned from those that its students never see."
    )
    columns = ("images", "number", *WAYS, "difference", "p (Holm)", "verdict")
    return Section(
        title=OF_IMAGES,
        text=evidence.paragraphs(claim, notes, reading, evidence.RULE),
        tables=[Table(columns=columns, rows=rows, caption="Mean ± sample std over seeds.")],
        charts=[_images_chart(both)],
    )


def _of_epochs(found: Mapping[Point, Group], fraction: float, notes: Sequence[str]) -> Section:
    curves = {
        way: {member.row.entry.seed: of for member in found[way, fraction].finished if (of := curve(member))}
        for way in WAYS
    }
    if not all(curves.values()):
        why = "The runs have no validation split: nothing to compare."
        return Section(title=OF_EPOCHS, text=evidence.paragraphs(notes, why))
    reached = fmean(one[max(one)] for one in curves[ALONE].values())
    means = {way: {seed: fmean(one.values()) for seed, one in of.items()} for way, of in curves.items()}
    claim = evidence.evaluated(
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
        title=OF_EPOCHS,
        text=evidence.paragraphs(claim, notes, reading, evidence.RULE),
        tables=[Table(columns=("level", *(f"epochs, {way}" for way in curves)), rows=rows)],
        charts=[_epochs_chart(curves)],
    )


def _epochs(curves: Mapping[int, Curve], level: float) -> str:
    found = [float(epoch) for one in curves.values() if (epoch := epochs_to(one, level)) is not None]
    return mean_std(found, 1) + (f" ({len(found)} of {len(curves)} seeds)" if len(found) < len(curves) else "")


def _color() -> alt.Color:
    return alt.Color("way:N", title=None, scale=alt.Scale(domain=list(WAYS), range=[INK, SERIES[0]]))


def _images_chart(both: Mapping[str, Mapping[float, BySeed]]) -> Chart:
    values: list[dict[str, Any]] = [
        {"images": 100 * fraction, "top1": value, "way": way, "seed": seed}
        for way, of in both.items()
        for fraction, by_seed in of.items()
        for seed, value in by_seed.items()
    ]
    base = chart(values).encode(
        x=alt.X("images:Q", scale=alt.Scale(type="log"), title="training images (% of all, log)"), color=_color()
    )
    scale = percents(row["top1"] for row in values)
    y = alt.Y("mean(top1):Q", scale=scale, title="test top-1 (%)")
    spec = alt.layer(
        base.mark_line(point=True).encode(y=y),
        base.mark_point(opacity=0.4, size=20).encode(
            y=alt.Y("top1:Q", scale=scale), tooltip=["way:N", "images:Q", "top1:Q"]
        ),
    )
    return Chart(name="efficiency_images", spec=spec.properties(width="container"))


def _epochs_chart(curves: Mapping[str, Mapping[int, Curve]]) -> Chart:
    values: list[dict[str, Any]] = [
        {"epoch": epoch, "top1": value, "way": way}
        for way, of in curves.items()
        for one in of.values()
        for epoch, value in one.items()
    ]
    base = chart(values).encode(x=alt.X("epoch:Q", title="epoch"), color=_color())
    scale = percents(row["top1"] for row in values)
    y = alt.Y("mean(top1):Q", scale=scale, title="validation top-1 (%)")
    spec = alt.layer(
        base.mark_area(opacity=0.2).encode(y=alt.Y("min(top1):Q", scale=scale), y2=alt.Y2("max(top1):Q")),
        base.mark_line().encode(y=y),
    )
    return Chart(name="efficiency_epochs", spec=spec.properties(width="container"))
