"""The best configuration: selected on validation, reported on test, with the uncertainty of the selection."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kdschemes.report.document import Section, Table
from kdschemes.report.formatting import NOTHING, accuracy, by_seed, listed, mean_of, mean_std, primary_head, signed
from kdschemes.report.groups import Group
from kdschemes.report.significance import NOT_COMPARABLE
from kdschemes.report.statistics import BySeed, against_zero, paired

MOST_ROWS = 20


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Groups in the order of their mean validation top-1, the selected one first; `left_out`: not comparable with it.

    `votes` counts, by label, how often a group is selected if one seed is left out in turn; `held_out` is the test
    top-1 of the group that is then selected, at that seed.
    """

    ranked: Sequence[Group]
    left_out: Sequence[str]
    votes: Mapping[str, int]
    held_out: BySeed

    @property
    def best(self) -> Group:
        return self.ranked[0]

    @property
    def as_good(self) -> list[Group]:
        """The other groups whose difference to the selected one on validation has an interval that includes 0."""
        own = validation(self.best)
        return [group for group in self.ranked[1:] if not paired(own, validation(group)).low > 0]


def validation(group: Group) -> BySeed:
    """Return the reported head's top-1 in percent on the validation split after the last epoch, by seed."""
    return by_seed(group, primary_head(group), "last", "top1", "val")


def select(groups: Sequence[Group]) -> Selection | None:
    """Select among the finished groups, by mean validation top-1 over seeds; None if fewer than two can be compared.

    Groups compete if they are evaluated on the same images; of the others, those that most share it do.
    """
    found = [group for group in groups if group.finished and not group.earlier and _finite(validation(group))]
    images = Counter(map(_images, found))
    kept = [group for group in found if _images(group) == images.most_common(1)[0][0]]
    if len(kept) < 2:
        return None
    ranked = sorted(kept, key=lambda group: -mean_of(validation(group).values()))
    seeds = sorted(set.intersection(*(set(validation(group)) for group in kept)))
    votes: Counter[str] = Counter()
    held_out: BySeed = {}
    for seed in seeds if len(seeds) > 1 else ():
        rest = [other for other in seeds if other != seed]
        chosen = max(ranked, key=lambda group, rest=rest: mean_of([validation(group)[one] for one in rest]))  # type: ignore[misc]
        votes[chosen.label] += 1
        if seed in accuracy(chosen):
            held_out[seed] = accuracy(chosen)[seed]
    left_out = [group.label for group in found if group not in kept]
    return Selection(ranked=ranked, left_out=left_out, votes=votes, held_out=held_out)


def selection_section(found: Selection) -> Section:
    """Return the selected configuration in words, and the table of those it was selected from."""
    best, own = found.best, validation(found.best)
    count = sum(found.votes.values())
    rows = []
    for group in found.ranked[:MOST_ROWS]:
        behind = paired(validation(group), own)
        rows.append(
            [
                group.label,
                mean_std(validation(group).values(), 2),
                NOTHING if group is best else signed(behind.mean_difference),
                f"{signed(behind.low)} to {signed(behind.high)}" if behind.n > 1 and group is not best else NOTHING,
                f"{found.votes.get(group.label, 0)} of {count}" if count else NOTHING,
                mean_std(accuracy(group).values(), 2),
            ]
        )
    columns = (
        "run",
        "validation top-1 %",
        "difference",
        "95 % interval",
        "selected without a seed",
        "test top-1 %",
    )
    caption = (
        "Reported heads after the last epoch, in the order of validation. Differences to the selected one are in "
        "points of validation top-1, paired by seed. Selected without a seed: how often a run is selected if one seed "
        "is left out in turn."
    )
    text = " ".join([verdict(found), *_uncertainty(found)])
    return Section(title="Best configuration", text=text, tables=[Table(columns=columns, rows=rows, caption=caption)])


def verdict(found: Selection) -> str:
    """Return the selected configuration in a sentence: its validation accuracy, and that on test with its interval."""
    own, test = validation(found.best), accuracy(found.best)
    words = f"Best on validation, of {len(found.ranked)}: **{found.best.label}** ({mean_std(own.values(), 2)} % there)"
    over = against_zero(test)
    if not test:
        return f"{words}; it was not evaluated on a test set."
    interval = f", 95 % interval {over.low:.2f} to {over.high:.2f} over {over.n} seeds" if over.n > 1 else ", one seed"
    return f"{words}. Test top-1: **{mean_of(test.values()):.2f} %**{interval}."


def _uncertainty(found: Selection) -> list[str]:
    """Return in sentences how uncertain the selection itself is."""
    best = found.best
    lines = []
    if alike := [group.label for group in found.as_good]:
        lines.append(
            f"On validation, the difference from {listed(alike, 4)} is inconclusive (the intervals include 0)."
        )
    else:
        lines.append("On validation it is ahead of all others, each by an interval above 0.")
    if count := sum(found.votes.values()):
        lines.append(
            f"If one seed is left out in turn, it is selected {found.votes.get(best.label, 0)} of {count} times."
        )
    if len(found.held_out) > 1:
        values = mean_std(found.held_out.values(), 2)
        lines.append(f"Selecting without a seed and testing with it gives {values} %, which includes the selection.")
    images = best.finished[0].protocol.get("val images")
    share = mean_of(validation(best).values()) / 100
    if images:
        error = 100 * math.sqrt(max(0.0, share * (1 - share)) / images)
        lines.append(f"With {images:,} validation images, an accuracy has a standard error of {error:.2f} points.")
    if found.left_out:
        lines.append(f"Evaluated on other images, not in the selection: {listed(found.left_out, 4)}.")
    return lines


def _finite(values: BySeed) -> bool:
    return bool(values) and all(map(math.isfinite, values.values()))


def _images(group: Group) -> str:
    protocol = group.finished[0].protocol
    return repr([protocol.get(key) for key in (*NOT_COMPARABLE, "val images")])
