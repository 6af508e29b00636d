"""The high-temperature limit: above which temperature does distillation match logits?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, linear_regression
from typing import TYPE_CHECKING

import altair as alt

from kdschemes.errors import UserError
from kdschemes.report.analyses import evidence
from kdschemes.report.charts.base import chart
from kdschemes.report.document import Chart, Section, Table
from kdschemes.report.formatting import mean_std
from kdschemes.report.groups import Group, Member

if TYPE_CHECKING:
    from kdschemes.report.analyses.soft_gradient import Comparison

TITLE = "The high-temperature limit of distillation's gradient"

TEMPERATURES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)

IMAGES = 500
"""Maximum number of test images used."""

USEFUL = 4.0
"""Multiple of the logits' std at which the error of the limit is reported."""

HIGH = 10.0
"""Multiple of the logits' std above which the slope is fitted."""

TOLERANCE = 0.05
"""Largest distance of a slope from -1 that still counts as 1/T."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One pair: the std of its logits, the gradient after and before training, and its slope and constant.

    `at_useful` is the limit's relative error at `USEFUL` times the larger std of student and teacher.
    """

    student: float
    teacher: float
    after: Comparison
    before: Comparison
    constant: float
    slope: float
    at_useful: float

    @property
    def std(self) -> float:
        """The larger of the two standard deviations."""
        return max(self.student, self.teacher)


def temperature_limit(groups: Sequence[Group]) -> list[Section]:
    """Return the gradient of distillation against (z - v) / (N T^2), measured on trained pairs."""
    sections: list[Section] = []
    for group in groups:
        if group.earlier or evidence.setting(group, "scheme.name") != "offline":
            continue
        pairs, reasons = [], []
        for member in group.finished:
            try:
                pairs.append(measure_pair(member))
            except UserError as error:
                reasons.append(f"Not measured: {error}.")
        notes = [*evidence.missing([group]), *reasons]
        title = TITLE if len(groups) < 3 else f"{TITLE}: {group.label}"
        suffix = f"_{len(sections) + 1}" if sections else ""
        sections.append(_section(title, pairs, notes, suffix))
    return sections or [Section(title=TITLE, text="No run of the study has a frozen teacher.")]


def measure_pair(member: Member) -> Measured:
    """Load the networks of a finished run and measure them on test images. Imports torch.

    Raises:
        UserError: the networks or the images do not exist.
    """
    from kdschemes.report.analyses.soft_gradient import compare, error_constant, std
    from kdschemes.report.analyses.trained_pair import pair_logits

    student, before, teacher = (logits.double() for logits in pair_logits(member, IMAGES))
    stds = std(student), std(teacher)
    after = compare(student, teacher, TEMPERATURES)
    (at_useful,) = compare(student, teacher, [USEFUL * max(stds)]).centered
    return Measured(
        student=stds[0],
        teacher=stds[1],
        after=after,
        before=compare(before, teacher, TEMPERATURES),
        constant=error_constant(student, teacher),
        slope=slope(after.temperatures, after.centered, above=HIGH * max(stds)),
        at_useful=at_useful,
    )


def slope(temperatures: Sequence[float], errors: Sequence[float], *, above: float) -> float:
    """Return the least-squares slope of log error on log T over temperatures above a bound, the last three at least."""
    pairs = list(zip(temperatures, errors, strict=True))
    kept = [pair for pair in pairs if pair[0] > above]
    kept = kept if len(kept) > 2 else pairs[-3:]
    x, y = ([math.log(pair[index]) for pair in kept] for index in (0, 1))
    return linear_regression(x, y).slope


def _section(title: str, pairs: Sequence[Measured], notes: Sequence[str], suffix: str) -> Section:
    if not pairs:
        return Section(title=title, text=evidence.paragraphs(notes, "No finished pair to measure yet."))
    slopes = [pair.slope for pair in pairs]
    falls = all(abs(one + 1) <= TOLERANCE for one in slopes)
    numbers = f"{len(pairs)} {'pair' if len(pairs) == 1 else 'pairs'}"
    claim = (
        f"Above {HIGH:g} times the std of the logits, the relative error of (z - v) / (N T^2) falls as 1/T: "
        f"**{evidence.SUPPORTED if falls else evidence.CONTRADICTED}** (slope on logarithmic axes "
        f"{mean_std(slopes, 3)} over {numbers}; supported if every slope is within {TOLERANCE:g} of -1)."
    )
    useful = (
        f"The std of the logits around their sample's mean is {mean_std([pair.student for pair in pairs], 2)} "
        f"(student) and {mean_std([pair.teacher for pair in pairs], 2)} (teacher). At {USEFUL:g} times the larger of "
        f"the two, T = {mean_std([USEFUL * pair.std for pair in pairs], 1)}, the error of the limit is "
        f"{mean_std([100 * pair.at_useful for pair in pairs], 1)} %; beyond that distillation is nearly a matching of "
        "logits."
    )
    exact, limit, centered, raw = (
        _means([getattr(pair.after, of) for pair in pairs]) for of in ("exact", "limit", "centered", "raw")
    )
    before = _means([pair.before.centered for pair in pairs])
    centring = (
        "These are logits centered over the classes of each sample. Without centering, an error of "
        f"{100 * raw[-1]:.2g} % remains at T = {TEMPERATURES[-1]:g}: an offset common to all classes changes (z - v) "
        "but not the softmax, so the error never vanishes."
    )
    how = (
        f"Gradient at the student's logits z of cross-entropy with the teacher's softened outputs (logits v), without "
        f"the factor T^2, by autograd in float64 on up to {IMAGES} test images; relative error ||g - limit|| / "
        "||limit|| over all of them. To leading order it is C / T with C from the logits alone: "
        f"{mean_std([pair.constant for pair in pairs], 2)}."
    )
    columns = ("T", "length of g", "length of the limit", "error", "error, not centered", "error before training")
    rows = [
        [f"{temperature:g}", *(f"{mean:.3g}" for mean in means)]
        for temperature, *means in zip(TEMPERATURES, exact, limit, centered, raw, before, strict=True)
    ]
    caption = f"Means over {numbers}; lengths are means over images. Before training: the student's initial weights."
    constant = fmean(pair.constant for pair in pairs)
    first_order = [{"T": temperature, "value": constant / temperature} for temperature in TEMPERATURES]
    errors = alt.layer(
        chart(first_order).mark_line(style="reference").encode(x=_x(), y=_y("relative error (log)")),
        _lines({"centered": centered, "as they are": raw, "centered, before training": before}, "relative error (log)"),
    )
    lengths = _lines({"gradient": exact, "(z - v) / (N T^2)": limit}, "length (log)")
    return Section(
        title=title,
        text=evidence.paragraphs(claim, useful, centring, notes, how),
        tables=[Table(columns=columns, rows=rows, caption=caption)],
        charts=[
            Chart(name=f"temperature_limit_{name}{suffix}", spec=spec.properties(width="container"), caption=words)
            for name, spec, words in (
                ("error", errors, "Relative error of the limit; dashed: C / T."),
                ("length", lengths, "Mean length of a sample's gradient, without the factor T^2."),
            )
        ],
    )


def _means(curves: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean over pairs at each temperature."""
    return [fmean(values) for values in zip(*curves, strict=True)]


def _lines(lines: Mapping[str, Sequence[float]], title: str) -> alt.Chart:
    values = [
        {"T": temperature, "value": mean, "line": name}
        for name, means in lines.items()
        for temperature, mean in zip(TEMPERATURES, means, strict=True)
    ]
    color = alt.Color("line:N", sort=list(lines), title=None)
    spec: alt.Chart = chart(values).mark_line(point=True).encode(x=_x(), y=_y(title), color=color)
    return spec


def _x() -> alt.X:
    axis = alt.Axis(values=list(TEMPERATURES))
    return alt.X("T:Q", scale=alt.Scale(type="log"), axis=axis, title="temperature T (log)")


def _y(title: str) -> alt.Y:
    axis = alt.Axis(values=[10.0**power for power in range(-12, 4)], format=".0e")
    return alt.Y("value:Q", scale=alt.Scale(type="log"), axis=axis, title=title)
