"""What analyses read from the groups of a study, and their verdicts on a claim."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from kdschemes.report.formatting import listed, probability
from kdschemes.report.groups import Group
from kdschemes.report.statistics import LEAST_SEEDS, LEVEL, Paired, verdicts

SUPPORTED, CONTRADICTED, INCONCLUSIVE = "supported", "contradicted", "inconclusive"

NO_VERDICT = f"no verdict with fewer than {LEAST_SEEDS} common seeds"

RULE = (
    f"A claim is {SUPPORTED} if its difference is above 0 with p < {LEVEL:g} (two-sided paired t test over seeds), "
    f"{CONTRADICTED} if it is below 0 with such a p, and {INCONCLUSIVE} otherwise; there is {NO_VERDICT}."
)

CROSS_ENTROPY = ("supervised", "ce")
"""Scheme and method of learning from labels alone."""

LISTED = 4
"""Number of labels that a sentence lists; the rest are counted."""

Point = TypeVar("Point", bound=Hashable)


def setting(group: Group, key: str) -> Any:
    """Return the value of a dotted configuration key, from the grid or a member's `config.yaml`, or None."""
    for member in group.members:
        if key in member.row.entry.grid:
            return member.row.entry.grid[key]
        tree: Any = member.config
        for part in key.split("."):
            tree = tree.get(part) if isinstance(tree, Mapping) else None
        if tree is not None:
            return tree
    return None


def method(group: Group) -> tuple[Any, Any]:
    """Return a group's scheme and method."""
    return setting(group, "scheme.name"), setting(group, "scheme.method")


def by_point(groups: Sequence[Group], point: Callable[[Group], Point | None]) -> tuple[dict[Point, Group], list[str]]:
    """Return the group with finished runs at each point, and a sentence for each that is not used.

    Runs that teach others are left out. Of several groups at one point (different protocols), the one with the most
    finished runs is used.
    """
    found: dict[Point, Group] = {}
    left_out = []
    for group in sorted(groups, key=lambda group: -len(group.finished)):
        if group.earlier or not group.finished:
            continue
        at = point(group)
        if at is None:
            continue
        if at in found:
            left_out.append(f"Left out: {group.label}, which was not trained or evaluated like {found[at].label}.")
        else:
            found[at] = group
    return {at: found[at] for group in groups for at in found if found[at] is group}, left_out


def missing(groups: Iterable[Group]) -> list[str]:
    """Return a sentence that says which runs of a study are not finished; [] if all are."""
    own = [group for group in groups if not group.earlier]
    labels = [member.row.entry.label for group in own for member in group.unfinished]
    if not labels:
        return []
    runs, shown = sum(len(group.members) for group in own), listed(labels, LISTED)
    return [f"**{len(labels)} of {runs} runs are not finished** ({shown}): the following is based on the others."]


def verdict_cells(tests: Sequence[Paired]) -> list[tuple[str, str]]:
    """Return the Holm-corrected p-value and the verdict of each comparison of one table as its cells."""
    return [(probability(p), words) for p, words in verdicts(tests)]


def verdict(found: Paired) -> str:
    """Return the verdict by `RULE` on the claim that a difference is above 0."""
    if found.n < LEAST_SEEDS:
        return NO_VERDICT
    if math.isnan(found.p) or found.p >= LEVEL:
        return INCONCLUSIVE
    return SUPPORTED if found.mean_difference > 0 else CONTRADICTED


def evaluated(claim: str, found: Paired, unit: str = "points") -> str:
    """Return the sentence on a claim: its verdict, then the difference behind it."""
    return f"{claim}: **{verdict(found)}** ({measured(found, unit)})."


def measured(found: Paired, unit: str = "points") -> str:
    """Return a mean difference with its interval, p-value and number of seeds."""
    seeds = f"{found.n} {'seed' if found.n == 1 else 'seeds'}"
    if found.n == 0:
        return "no common seed"
    if math.isnan(found.p):
        return f"{found.mean_difference:+z.2f} {unit}, {seeds}"
    interval = f"95 % interval {found.low:+z.2f} to {found.high:+z.2f}"
    return f"{found.mean_difference:+z.2f} {unit}, {interval}, {probability(found.p)}, {seeds}"


def paragraphs(*parts: str | Sequence[str]) -> str:
    """Join sentences to the text of a section, one paragraph each; empty ones are left out."""
    flat = [line for part in parts for line in ([part] if isinstance(part, str) else part)]
    return "\n\n".join(filter(None, flat))
