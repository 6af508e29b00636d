"""Does distillation copy a network: how much do students agree with their teacher, and does that make them better?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import altair as alt
import numpy as np
import numpy.typing as npt
from scipy import stats

from kdschemes.errors import UserError
from kdschemes.report.analyses import evidence
from kdschemes.report.charts.base import chart
from kdschemes.report.document import Chart, Section, Table
from kdschemes.report.formatting import NOTHING, by_seed, mean_std, primary_head, probability
from kdschemes.report.groups import Group, Member
from kdschemes.report.statistics import BySeed, paired
from kdschemes.storage.predictions import read_predictions

TITLE = "Fidelity: agreement with the teacher against accuracy"

Classes = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Point:
    """The weight of the teacher (alpha) and the temperature."""

    alpha: float
    temperature: float

    def __str__(self) -> str:
        return f"alpha={self.alpha:g}, T={self.temperature:g}"


@dataclass(frozen=True, kw_only=True)
class Errors:
    """A teacher's errors: how many, and the percentage for which a student predicts the same wrong class."""

    count: int
    repeated: float


def fidelity(groups: Sequence[Group]) -> list[Section]:
    """Return agreement with the teacher and divergence from it against accuracy, over alpha and temperature.

    The student with alpha = 0 has learned from labels alone: it agrees as much as two unrelated networks do.
    """
    found, left_out = evidence.by_point(groups, _point)
    notes = [*evidence.missing(groups), *left_out]
    alone = next((point for point in found if point.alpha == 0), None)
    points = sorted(found, key=lambda point: (point.alpha, point.temperature))
    listening = [point for point in points if point.alpha > 0]
    if alone is None or not listening:
        why = "Nothing to compare yet: this needs a student with alpha = 0 and one with alpha > 0."
        return [Section(title=TITLE, text=evidence.paragraphs(notes, why))]
    strongest = listening[-1]
    agreement = {point: _test(found[point], "agreement") for point in points}
    top1 = {point: _test(found[point], "top1") for point in points}
    errors = {point: [one for member in found[point].finished if (one := _errors(member))] for point in points}
    tests = {point: paired(agreement[point], agreement[alone]) for point in listening}
    cells = dict(zip(listening, evidence.verdict_cells(list(tests.values())), strict=True))
    claim = evidence.evaluated(
        f"Distillation copies another network (agreement with the teacher at {strongest} against that of a student "
        "of labels alone)",
        tests[strongest],
    )
    rows = []
    for point in points:
        p, words = cells.get(point, (NOTHING, NOTHING))
        words = {"better": "agrees more", "worse": "agrees less"}.get(words, words)
        means = [
            mean_std(top1[point].values(), 2),
            mean_std(agreement[point].values(), 2),
            mean_std(_test(found[point], "kl").values(), 4),
            mean_std([one.repeated for one in errors[point] if one.count], 1),
        ]
        rows.append([f"{point} (labels alone)" if point is alone else str(point), *means, p, words])
    columns = ("student", "test top-1 %", "agreement %", "KL from teacher", "teacher's errors repeated %", "p (Holm)")
    caption = (
        "On the test set after the last epoch, mean ± sample std over seeds. Agreement: same predicted class "
        "as the teacher. Errors repeated: errors of the teacher that the student makes too. The test compares the "
        "agreement, against labels alone."
    )
    text = evidence.paragraphs(
        claim,
        _how_far(strongest, alone, agreement, errors),
        _better_with_agreement(agreement, top1),
        notes,
        "All students have the same teacher: the findings hold for that one. " + evidence.RULE,
    )
    table = Table(columns=(*columns, "against labels alone"), rows=rows, caption=caption)
    charts = [
        _chart(found, "agreement", "agreement with the teacher on the test set (%)"),
        _chart(found, "kl", "KL from the teacher on the test set (nats)"),
    ]
    return [Section(title=TITLE, text=text, tables=[table], charts=charts)]


def repeated_errors(labels: Classes, teacher: Classes, student: Classes) -> Errors:
    """Return the number of the teacher's errors, and the percentage for which the student predicts the same class."""
    wrong = teacher != labels
    count = int(wrong.sum())
    return Errors(count=count, repeated=100.0 * float((student == teacher)[wrong].mean()) if count else 0.0)


def correlation(agreement: Sequence[float], top1: Sequence[float]) -> tuple[float, float]:
    """Return Spearman's rank correlation of agreement and accuracy, and its p-value; NaN if undefined."""
    if len(agreement) < 3 or len(set(agreement)) < 2 or len(set(top1)) < 2:
        return float("nan"), float("nan")
    found = stats.spearmanr(agreement, top1)
    return float(found.statistic), float(found.pvalue)


def _point(group: Group) -> Point | None:
    alpha, temperature = evidence.setting(group, "scheme.alpha"), evidence.setting(group, "losses.response.temperature")
    if evidence.setting(group, "scheme.name") != "offline" or alpha is None or temperature is None:
        return None
    return Point(alpha=float(alpha), temperature=float(temperature))


def _test(group: Group, key: str) -> BySeed:
    return by_seed(group, primary_head(group), "last", key)


def _errors(member: Member) -> Errors | None:
    """Return which of its teacher's test errors a student repeats; None if its predictions are not stored."""
    try:
        predictions = read_predictions(member.folder)
    except UserError:
        return None
    if predictions is None or member.results is None or "test" not in predictions.labels:
        return None
    heads = [predictions.heads.get(str(member.results[key]), {}).get("test") for key in ("teacher", "primary_head")]
    if heads[0] is None or heads[1] is None:
        return None
    return repeated_errors(predictions.labels["test"], heads[0].classes, heads[1].classes)


def _how_far(
    strongest: Point, alone: Point, agreement: Mapping[Point, BySeed], errors: Mapping[Point, Sequence[Errors]]
) -> str:
    agrees = {point: mean_std(agreement[point].values(), 2) for point in (strongest, alone)}
    facts = [
        f"a copy would agree on 100 %, the student at {strongest} agrees on {agrees[strongest]} %",
        f"that of labels alone on {agrees[alone]} %",
    ]
    count = errors[strongest][0].count if errors[strongest] else 0
    if count and errors[alone]:
        shares = [mean_std([one.repeated for one in errors[point]], 1) for point in (strongest, alone)]
        facts.append(f"of the teacher's {count} errors the first repeats {shares[0]} %, the second {shares[1]} %")
    return f"How much of a copy: {'; '.join(facts)}."


def _better_with_agreement(agreement: Mapping[Point, BySeed], top1: Mapping[Point, BySeed]) -> str:
    pairs = [(value, top1[point][seed]) for point, of in agreement.items() for seed, value in of.items()]
    rho, p = correlation([one for one, _ in pairs], [two for _, two in pairs])
    if rho != rho:
        return "These runs do not show whether more agreement means higher accuracy."
    return (
        f"Over all {len(pairs)} runs, agreement and accuracy have a rank correlation of {rho:+z.2f} ({probability(p)}; "
        "runs of one seed are not independent of each other)."
    )


def _chart(found: Mapping[Point, Group], key: str, title: str) -> Chart:
    values = [
        {key: value, "top1": top1[seed], "alpha": point.alpha, "T": f"{point.temperature:g}", "seed": seed}
        for point, group in found.items()
        for top1 in [_test(group, "top1")]
        for seed, value in _test(group, key).items()
    ]
    temperatures = sorted({f"{point.temperature:g}" for point in found}, key=float)
    spec = (
        chart(values)
        .mark_point(filled=True, size=60)
        .encode(
            x=alt.X(f"{key}:Q", scale=alt.Scale(zero=False), title=title),
            y=alt.Y("top1:Q", scale=alt.Scale(zero=False), title="test top-1 (%)"),
            color=alt.Color("alpha:Q", title="alpha"),
            shape=alt.Shape("T:N", title="T", sort=temperatures),
            tooltip=["alpha:Q", "T:N", "seed:Q", f"{key}:Q", "top1:Q"],
        )
        .properties(width="container")
    )
    return Chart(name=f"fidelity_{key}", spec=spec, caption="A point is a run.")
