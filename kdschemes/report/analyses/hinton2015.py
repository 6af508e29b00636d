"""The six statements of Hinton et al. (2015) on MNIST, and what the same experiments show here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import altair as alt

from kdschemes.errors import UserError
from kdschemes.report.analyses import evidence
from kdschemes.report.analyses.missing_class import Corrected, best_offset, hits, measure
from kdschemes.report.charts.base import chart
from kdschemes.report.document import Chart, Section, Table
from kdschemes.report.formatting import NOTHING, mean_std
from kdschemes.report.groups import Group
from kdschemes.report.published import measured
from kdschemes.report.statistics import LEAST_SEEDS, BySeed, Paired, mean_by_seed, paired

TITLE = "The statements of Hinton et al. (2015) on MNIST"

HIGH = 8.0
"""The temperature from which on the paper finds all alike for the wide student."""

BEST = (2.5, 4.0)
"""The range of temperatures that the paper finds best for the narrow student."""

ALIKE = 10.0
"""Errors of 10,000 within which two temperatures count as alike."""

NEAR = 15.0
"""Errors of 10,000 within which a student counts as equal to its teacher."""

AXIS = "test errors (log)"

PUBLISHED: Mapping[str, tuple[str, str]] = {
    "no 3": ("206 (133 on 3s)", "109 (14 on 3s)"),
    "only 7 and 8": ("4730", "1320"),
}
"""Test errors of the students that miss classes, as trained and with the offset chosen on the test set."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A network of the study: the number of hidden units, the temperature (None: labels only), the omitted classes."""

    units: int
    temperature: float | None = None
    omitted: tuple[int, ...] = ()
    teacher: bool = False


def hinton2015(groups: Sequence[Group]) -> list[Section]:
    """Return a verdict on each statement, the errors by temperature, and those of students that miss classes."""
    found, left_out = evidence.by_point(groups, _point)
    errors = {point: measured(group, "errors") for point, group in found.items()}
    for group in groups:
        if group.earlier and group.finished and (point := _point(group)) is not None:
            errors[Point(units=point.units, teacher=True)] = measured(group, "errors")
    notes = [*evidence.missing(groups), *left_out]
    corrected: dict[Point, dict[int, Corrected]] = {}
    for point, group in found.items():
        for member in group.finished if point.omitted else ():
            try:
                corrected.setdefault(point, {})[member.row.entry.seed] = measure(member, point.omitted)
            except UserError as error:
                notes.append(f"Left out: {member.row.entry.label}. {error}")
    text = evidence.paragraphs(_statements(errors, corrected), notes, evidence.RULE)
    tables = [*_by_temperature(errors), *_by_omission(corrected)]
    return [Section(title=TITLE, text=text, tables=tables, charts=_chart(errors))]


def _point(group: Group) -> Point | None:
    name = str(evidence.setting(group, "model.name"))
    if not name.startswith("mlp_"):
        return None
    omitted = tuple(evidence.setting(group, "data.exclude_classes") or ())
    taught = evidence.method(group) != evidence.CROSS_ENTROPY
    temperature = float(evidence.setting(group, "losses.response.temperature")) if taught else None
    return Point(units=int(name.rpartition("_")[2]), temperature=temperature, omitted=omitted)


def _statements(errors: Mapping[Point, BySeed], corrected: Mapping[Point, Mapping[int, Corrected]]) -> list[str]:
    """Return a sentence for each of the paper's statements; differences are in errors, positive if it holds."""
    large = max((point for point in errors if point.teacher), key=lambda point: point.units, default=None)
    small = max((point for point in errors if not point.teacher), key=lambda point: point.units, default=None)
    sentences = []
    if large and small:
        alone, taught = (
            next((errors[p] for p in errors if p.units == small.units and _plain(p, at)), {}) for at in (False, True)
        )
        sentences += [
            _evaluated(1, "A large regularized net is better than a small one", paired(alone, errors[large])),
            _evaluated(2, "Its soft targets pass most of that on to the small one", paired(alone, taught)),
        ]
        gap = paired(taught, errors[large])
        if gap.n:
            close = "within" if gap.mean_difference <= NEAR else "not within"
            sentences.append(f"The student is {close} {NEAR:.0f} errors of its teacher: {_measured(gap)}.")
    sentences += [_wide(_temperatures(errors, 300)), _narrow(_temperatures(errors, 30))]
    for number, (point, of) in enumerate(sorted(corrected.items(), key=lambda pair: len(pair[0].omitted)), start=5):
        before, after = ({seed: float(one.errors[which]) for seed, one in of.items()} for which in (0, 1))
        claim = f"A student that saw {_seen(point)} knows the others: one offset of their logits recovers them"
        sentences.append(_evaluated(number, claim, paired(before, after)))
    return [sentence for sentence in sentences if sentence]


def _plain(point: Point, taught: bool) -> bool:
    """Return whether a point is a student of all classes, taught or not."""
    return not point.omitted and not point.teacher and (point.temperature is not None) == taught


def _evaluated(number: int, claim: str, found: Paired) -> str:
    return f"({number}) {evidence.evaluated(claim, found, 'errors')}"


def _measured(found: Paired) -> str:
    return evidence.measured(found, "errors")


def _temperatures(errors: Mapping[Point, BySeed], units: int) -> dict[float, BySeed]:
    """Return the errors of the students of one width by temperature."""
    found = {p.temperature: of for p, of in errors.items() if p.units == units and _plain(p, True)}
    return {at: found[at] for at in sorted(at for at in found if at is not None)}


def _wide(found: Mapping[float, BySeed]) -> str:
    """Evaluate whether all high temperatures are alike, by whether each interval of a difference is within `ALIKE`."""
    pairs = [paired(found[a], found[b]) for a, b in combinations([at for at in found if at >= HIGH], 2)]
    if not pairs:
        return ""
    widest = max(pairs, key=lambda pair: abs(pair.mean_difference))
    if min(pair.n for pair in pairs) < LEAST_SEEDS:
        verdict = evidence.NO_VERDICT
    elif all(pair.low >= -ALIKE and pair.high <= ALIKE for pair in pairs):
        verdict = evidence.SUPPORTED
    elif any(pair.low > ALIKE or pair.high < -ALIKE for pair in pairs):
        verdict = evidence.CONTRADICTED
    else:
        verdict = evidence.INCONCLUSIVE
    return (
        f"(3) With 300 units, all temperatures from {HIGH:g} on are alike (every interval of a difference within "
        f"{ALIKE:.0f} errors): **{verdict}** (the largest difference: {_measured(widest)})."
    )


def _narrow(found: Mapping[float, BySeed]) -> str:
    """Evaluate whether temperatures in `BEST` are better than lower and than higher ones."""
    best = [at for at in found if BEST[0] <= at <= BEST[1]]
    lower, higher = [at for at in found if at < BEST[0]], [at for at in found if at >= HIGH]
    if not (best and lower and higher):
        return ""
    inside, below, above = (mean_by_seed([found[at] for at in part]) for part in (best, lower, higher))
    than_lower, than_higher = paired(below, inside), paired(above, inside)
    found_verdicts = {evidence.verdict(than_lower), evidence.verdict(than_higher)}
    order = (evidence.NO_VERDICT, evidence.CONTRADICTED, evidence.INCONCLUSIVE, evidence.SUPPORTED)
    verdict = next(word for word in order if word in found_verdicts)
    return (
        f"(4) With 30 units, temperatures from {BEST[0]:g} to {BEST[1]:g} are better than lower and than higher ones: "
        f"**{verdict}** (than lower: {_measured(than_lower)}; than higher: {_measured(than_higher)})."
    )


def _seen(point: Point) -> str:
    seen = [str(digit) for digit in range(10) if digit not in point.omitted]
    return (
        f"only {' and '.join(seen)}" if len(seen) < len(point.omitted) else f"no {', '.join(map(str, point.omitted))}"
    )


def _by_temperature(errors: Mapping[Point, BySeed]) -> list[Table]:
    widths = [units for units in sorted({p.units for p in errors}) if len(_temperatures(errors, units)) > 1]
    temperatures = sorted({at for units in widths for at in _temperatures(errors, units)})
    if not widths:
        return []
    alone = {p.units: of for p, of in errors.items() if _plain(p, False)}
    rows = [["labels only", *(mean_std(alone.get(units, {}).values(), 1) for units in widths)]]
    rows += [
        [f"T = {at:g}", *(mean_std(_temperatures(errors, units).get(at, {}).values(), 1) for units in widths)]
        for at in temperatures
    ]
    columns = ("student", *(f"{units} units" for units in widths))
    return [Table(columns=columns, rows=rows, caption="Errors on the test set, mean ± sample std over seeds.")]


def _by_omission(corrected: Mapping[Point, Mapping[int, Corrected]]) -> list[Table]:
    rows = []
    for point, of in corrected.items():
        on_test = [best_offset(one.test, point.omitted) for one in of.values()]
        known = [hits(one.test, point.omitted, at) for one, at in zip(of.values(), on_test, strict=True)]
        published = PUBLISHED.get(_seen(point), (NOTHING, NOTHING))
        rows.append(
            [
                _seen(point),
                published[0],
                *(mean_std([float(getattr(one, key)[0]) for one in of.values()], 1) for key in _COUNTS),
                *(mean_std([float(getattr(one, key)[1]) for one in of.values()], 1) for key in _COUNTS),
                mean_std([one.offset for one in of.values()], 2),
                published[1],
                mean_std([float((~right).sum()) for right in known], 1),
                mean_std(on_test, 2),
            ]
        )
    if not rows:
        return []
    columns = (
        "classes seen",
        "published errors",
        "errors",
        "on unseen classes",
        "corrected",
        "corrected, unseen classes",
    )
    more = ("offset", "published, corrected", "corrected on test", "offset on test")
    caption = (
        "Errors on the test set, mean ± sample std over seeds. Corrected: one offset for all unseen classes "
        "is added to their logits; it is chosen on the validation split or, as in the paper, on the test set itself."
    )
    return [Table(columns=(*columns, *more), rows=rows, caption=caption)]


_COUNTS = ("errors", "omitted_errors")


def _chart(errors: Mapping[Point, BySeed]) -> list[Chart]:
    rows: list[dict[str, Any]] = [
        {"temperature": at, "errors": value, "student": f"{units} units", "seed": seed}
        for units in sorted({point.units for point in errors})
        for at, of in _temperatures(errors, units).items()
        for seed, value in of.items()
        if len(_temperatures(errors, units)) > 1
    ]
    if not rows:
        return []
    x = alt.X("temperature:Q", scale=alt.Scale(type="log", base=2), title="temperature T (log)")
    scale = alt.Scale(type="log", nice=False, padding=10)
    color = alt.Color("student:N", title=None)
    spec = alt.layer(
        chart(rows).mark_line().encode(x=x, y=alt.Y("mean(errors):Q", scale=scale, title=AXIS), color=color),
        chart(rows)
        .mark_point(filled=True, size=40)
        .encode(x=x, y=alt.Y("errors:Q", scale=scale, title=AXIS), color=color, tooltip=["student:N", "errors:Q"]),
    )
    caption = "Lines: means over seeds. Points: single runs."
    return [Chart(name="hinton2015", spec=spec.properties(width="container"), caption=caption)]
