"""The first section of a report, if its study names papers: their numbers beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kdschemes.cards.read import papers, plain
from kdschemes.report.document import Section, Table
from kdschemes.report.formatting import NOTHING, by_seed, mean_of, mean_std, name, primary_head, seeds, signed
from kdschemes.report.groups import Group
from kdschemes.report.significance import baseline_of, is_named
from kdschemes.report.statistics import BySeed, paired
from kdschemes.study.published import Published

TITLE = "Published and ours"

COLUMNS = ("run", "published", "ours", "seeds", "ours - published")

GAINS = ("published gain", "our gain", "95 % interval")


@dataclass(frozen=True, kw_only=True)
class Measure:
    """How a metric of a paper is called, the decimals with which ours is written, and 1 if more is better, else -1."""

    title: str
    digits: int
    sign: int = 1


MEASURES = {
    "errors": Measure(title="wrong test images", digits=1, sign=-1),
    "error_percent": Measure(title="wrong test images in percent", digits=2, sign=-1),
    "top1": Measure(title="test top-1 in percent", digits=2),
    "agreement": Measure(title="test images to which student and teacher give the same class, in percent", digits=2),
}
"""By the metrics of `study.published`."""


def published_section(published: Sequence[Published], groups: Sequence[Group], baseline: str | None) -> Section | None:
    """Return a table for each paper, one row for each of its numbers, and where we differ; None without papers.

    Ours are those of the reported heads on the test set after the last epoch, mean and sample std over seeds. The gain
    is over the study's baseline (`baseline_of`), where the paper has its number too, and positive if better; that of
    ours is paired by seed, with the 95 % interval of a t test.
    """
    if not published:
        return None
    return Section(
        title=TITLE,
        text="Ours: mean ± sample std over the listed seeds, reported heads, on the test set after the last epoch.",
        tables=[_table(each, groups, baseline) for each in published],
        items=[f"**Differs from {cited(each.paper)}:** {line}" for each in published for line in each.differs],
    )


def cited(paper: str) -> str:
    """Return authors and year of a key of `papers.bib`."""
    entry = papers()[paper]
    return f"{entry.authors} ({entry.field('year')})"


def measured(group: Group, metric: str) -> BySeed:
    """Return a metric of `study.published` by seed, for the finished runs that have it."""
    if not group.finished:
        return {}
    key = "agreement" if metric == "agreement" else "top1"
    found = by_seed(group, primary_head(group), "last", key)
    if metric == "errors":
        images = {member.row.entry.seed: member.protocol["test images"] for member in group.finished}
        return {seed: float(round((100 - value) / 100 * images[seed])) for seed, value in found.items()}
    return {seed: 100 - value if metric == "error_percent" else value for seed, value in found.items()}


def _table(published: Published, groups: Sequence[Group], baseline: str | None) -> Table:
    measure = MEASURES[published.metric]
    against = baseline_of(groups, baseline)
    rows, bases = [], []
    for label, value in published.values.items():
        exact = [group for group in groups if group.label == label]
        found = exact or [group for group in groups if is_named(group, label)]
        if not found:
            rows.append([label, f"{value:g}", "not run", *[NOTHING] * (len(COLUMNS) + len(GAINS) - 3)])
        for group in found:
            own = measured(group, published.metric)
            row = [name(group), f"{value:g}", _ours(group, own, measure), seeds(group).strip() or NOTHING]
            row.append(signed(mean_of(own.values()) - value, measure.digits) if own else NOTHING)
            base = against.get(group.label)
            before = None if base is None else _value(published.values, base)
            if base is None or before is None or not own:
                row += [NOTHING] * len(GAINS)
            else:
                bases.append(base.label)
                row += [
                    signed(measure.sign * (value - before), measure.digits),
                    *_gain(own, measured(base, published.metric), measure),
                ]
            rows.append(row)
    entry = papers()[published.paper]
    caption = f"{cited(published.paper)}, {plain(entry.field('title'))} (`{published.paper}`): {measure.title}."
    if not bases:
        return Table(columns=COLUMNS, rows=[row[: len(COLUMNS)] for row in rows], caption=caption)
    over = ", ".join(f"**{label}**" for label in dict.fromkeys(bases))
    caption += (
        f" Gain: over {over}, positive if better, ours paired by seed, with the interval of a t "
        "test for a single comparison."
    )
    return Table(columns=(*COLUMNS, *GAINS), rows=rows, caption=caption)


def _value(values: Mapping[str, float], group: Group) -> float | None:
    return next((value for label, value in values.items() if is_named(group, label)), None)


def _ours(group: Group, own: BySeed, measure: Measure) -> str:
    if not group.finished:
        return "not finished"
    return mean_std(own.values(), measure.digits) if own else "not measured"


def _gain(own: BySeed, base: BySeed, measure: Measure) -> list[str]:
    found = paired(own, base) if measure.sign > 0 else paired(base, own)
    interval = (
        f"{signed(found.low, measure.digits)} to {signed(found.high, measure.digits)}" if found.n > 1 else NOTHING
    )
    return [signed(found.mean_difference, measure.digits), interval]
