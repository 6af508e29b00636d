"""Differences between methods, paired by seed, with their intervals and tests, as a table and in a few sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kdschemes.config.data import SUBSET
from kdschemes.report.document import Table
from kdschemes.report.formatting import NOTHING, accuracy, listed, mean_std, p_value, probability, signed
from kdschemes.report.groups import Group
from kdschemes.report.statistics import INCONCLUSIVE, LEAST_SEEDS, Paired, paired, verdicts
from kdschemes.study.record import Entry

NOT_COMPARABLE = ("data", "data.split_seed", "test images")
"""Keys of a protocol: groups that differ in one of them are never compared."""


MOST_TOLD = 8
"""Maximum number of planned differences that the summary states; the table has all of them."""

EXPLORATORY = "exploratory"
"""The verdict on a comparison that the study's plan does not name."""

SIGNIFICANT = "significant"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A group against another, by test top-1 of the reported heads after the last epoch, in points.

    `differs` lists the keys in which their protocols differ, or "model". `p` is Holm-corrected over the `planned`
    comparisons of a report; of the others there is none.
    """

    group: Group
    against: Group
    paired: Paired
    p: float
    verdict: str
    differs: tuple[str, ...] = ()
    planned: bool = True


def baseline_of(groups: Sequence[Group], label: str | None = None) -> dict[str, Group]:
    """Return the baseline of each finished group by label; baselines themselves have none.

    It is the group of that label for all, if there is one; nothing is compared before it has finished runs. Else, in a
    study with variants, it is the first supervised variant, or the first of all, at the same grid point where it has
    that, else the first such variant of the same model; groups that train on other images than that have the first such
    variant with theirs, where there is one. Else it is the first supervised group (cross-entropy before other methods),
    or the first of all; runs without a study have that of the same data and model where there is one, else of the same
    data.
    """
    found = [group for group in groups if group.finished and not group.earlier]
    if not found:
        return {}
    named = [group for group in groups if is_named(group, label)]
    if named:
        base = next((group for group in named if group.finished), None)
        return {group.label: base for group in found if base and group is not base}
    chosen = _first_supervised(found)
    variant = _entry(chosen).variant
    alike = [group for group in found if _supervision(group) == _supervision(chosen)]
    if variant is not None and any(_entry(group).variant != variant for group in found):
        own = [group for group in found if _entry(group).variant == variant]
        by_point = {_point(group): group for group in reversed(own)}
        by_images = {(_point(group), _images(group)): group for group in reversed([*own, *alike])}
        by_own_model = {_model(group): group for group in reversed([*own, *alike])}
        others = {group.label: by_own_model.get(_model(group), own[0]) for group in found}
        against = {
            group.label: by_images.get(
                (_point(group), _images(group)), by_point.get(_point(group), others[group.label])
            )
            for group in found
        }
    elif _entry(chosen).grid:
        against = {group.label: chosen for group in found}
    else:
        by_model = {(_data(group), _model(group)): group for group in reversed(alike)}
        by_data = {_data(group): group for group in reversed(alike)}
        against = {
            group.label: by_model.get((_data(group), _model(group)), by_data.get(_data(group), chosen))
            for group in found
        }
    return {label: base for label, base in against.items() if label != base.label}


def is_named(group: Group, label: str | None) -> bool:
    """Whether a group has a label, or is one of the protocols into which its runs were divided."""
    return group.label == label or group.label.startswith(f"{label} (")


def compare_groups(
    groups: Sequence[Group], baseline: str | None = None, plan: Sequence[tuple[str, str]] = ()
) -> list[Comparison]:
    """Compare the pairs of a plan, given by their labels, then every other group with its baseline (`baseline_of`).

    Without a plan, the comparisons with baselines are the planned ones; else they are exploratory: they have their
    interval, but no p and no verdict.
    """
    against = baseline_of(groups, baseline)
    with_baselines = [(group, against[group.label]) for group in groups if group.label in against and group.finished]
    named = [pair for first, second in plan for pair in _named_pairs(groups, first, second)]
    known = {frozenset((group.label, base.label)) for group, base in named}
    rest = [pair for pair in with_baselines if frozenset((pair[0].label, pair[1].label)) not in known]
    if plan:
        return [*_compared(named), *_compared(rest, planned=False)]
    return _compared(with_baselines)


def _named_pairs(groups: Sequence[Group], first: str, second: str) -> list[tuple[Group, Group]]:
    """Return the finished groups of two labels, each of the first with the one of the second that is trained alike."""
    bases = [group for group in groups if is_named(group, second) and group.finished]
    return [
        (group, min(bases, key=lambda base, group=group: len(_differences(group, base))))  # type: ignore[misc]
        for group in groups
        if is_named(group, first) and group.finished and bases
    ]


def _compared(pairs: Sequence[tuple[Group, Group]], *, planned: bool = True) -> list[Comparison]:
    differ = [_differences(group, base) for group, base in pairs]
    refused = [next((f"not compared: other {key}" for key in keys if key in NOT_COMPARABLE), "") for keys in differ]
    tests = [
        paired({}, {}) if why else paired(accuracy(group), accuracy(base))
        for (group, base), why in zip(pairs, refused, strict=True)
    ]
    found = []
    for (group, base), test, (p, words), why, keys in zip(pairs, tests, verdicts(tests), refused, differ, strict=True):
        verdict = SIGNIFICANT if words in ("better", "worse") else words
        if not planned:
            p, verdict = math.nan, EXPLORATORY
        each = Comparison(
            group=group, against=base, paired=test, p=p, verdict=why or verdict, differs=keys, planned=planned
        )
        found.append(each)
    return found


def comparison_table(found: Sequence[Comparison]) -> Table:
    """Return the table of comparisons: effect and interval first, then what is left after the correction."""
    several = len(baselines(found)) > 1
    differing = any(each.differs for each in found)
    tested = sum(each.planned and each.paired.n >= LEAST_SEEDS for each in found)
    after = "after correction" if tested > 1 else "test"
    columns = ("run", "difference", "95 % interval", *(["against"] if several else []), "common seeds", "p", after)
    rows = [
        [
            each.group.label,
            signed(each.paired.mean_difference),
            _interval(each.paired) or NOTHING,
            *([each.against.label] if several else []),
            str(each.paired.n),
            p_value(each.p),
            each.verdict,
            *([", ".join(each.differs) or NOTHING] if differing else []),
        ]
        for each in found
    ]
    against = "another" if several else found[0].against.label
    caption = (
        f"Each run against {against}: difference in points of test top-1 of the reported heads after the last epoch, "
        "paired by seed, with the interval of a t test for a single comparison"
    )
    exploratory = any(not each.planned for each in found)
    if tested > 1:
        caption += f"; p is Holm-corrected for {tested} {'planned ' if exploratory else ''}comparisons"
    caption += "."
    if exploratory:
        caption += " Exploratory: not planned in the study file, so neither tested nor counted in the correction."
    elif any(each.verdict == INCONCLUSIVE for each in found):
        caption += " Inconclusive is not equal: the interval says which differences are compatible with the runs."
    return Table(columns=(*columns, "differs in") if differing else columns, rows=rows, caption=caption)


def baselines(found: Sequence[Comparison]) -> list[str]:
    """Return the labels of the groups that others are compared with."""
    return list(dict.fromkeys(each.against.label for each in found))


def sentences(found: Sequence[Comparison]) -> list[str]:
    """Return the outcome in a few sentences: the planned differences with their intervals, the largest first."""
    planned = [each for each in found if each.planned]
    bases = baselines(planned)
    top = {each.against.label: mean_std(accuracy(each.against).values(), 2) for each in planned}
    named = ", ".join(f"**{label}** ({top[label]} %)" for label in bases[:3]) + (", ..." if len(bases) > 3 else "")
    measured = [each for each in planned if each.paired.n and not math.isnan(each.paired.mean_difference)]
    measured.sort(key=lambda each: -abs(each.paired.mean_difference))
    corrected = sum(each.paired.n >= LEAST_SEEDS for each in planned) > 1
    lines = ["Of the planned comparisons, none has finished runs yet."]
    if planned:
        lines = [
            f"Test top-1 after the last epoch against {named}: difference in points, paired by seed, 95 % interval:"
        ]
    lines += [_sentence(each, several=len(bases) > 1, corrected=corrected) for each in measured[:MOST_TOLD]]
    if len(measured) > MOST_TOLD:
        lines.append(f"{len(measured) - MOST_TOLD} smaller differences are in the table.")
    rest: dict[str, list[str]] = {}
    for each in planned:
        if each not in measured:
            rest.setdefault(each.verdict, []).append(each.group.label)
    lines += [f"{verdict[0].upper()}{verdict[1:]}: {listed(labels)}." for verdict, labels in rest.items()]
    if others := [each.group.label for each in found if not each.planned]:
        lines.append(f"Exploratory, in the table only: {listed(others)}.")
    return lines


def _sentence(each: Comparison, *, several: bool, corrected: bool) -> str:
    words = f"**{each.group.label}**: {signed(each.paired.mean_difference)}"
    words += f" against **{each.against.label}**" if several else ""
    seeds = f"{each.paired.n} {'seed' if each.paired.n == 1 else 'seeds'}"
    interval = _interval(each.paired)
    words += f" ({interval}, {seeds})" if interval else f" ({seeds})"
    if not math.isnan(each.p):
        words += f"; {each.verdict}{' after correction' if corrected else ''}, {probability(each.p)}"
    else:
        words += f"; {each.verdict}"
    return words + (f"; differs in {', '.join(each.differs)} too." if each.differs else ".")


def _interval(paired: Paired) -> str:
    return f"{signed(paired.low)} to {signed(paired.high)}" if paired.n > 1 else ""


def _differences(group: Group, base: Group) -> tuple[str, ...]:
    own, other = group.finished[0].protocol, base.finished[0].protocol
    keys = [key for key, value in own.items() if other.get(key) != value]
    return (*keys, *(["model"] if _model(group) != _model(base) else []))


def _first_supervised(groups: Sequence[Group]) -> Group:
    supervised = [group for group in groups if _supervision(group)[0] == "supervised"]
    plain = [group for group in supervised if _supervision(group)[1] == "ce"]
    return [*plain, *supervised, *groups][0]


def _supervision(group: Group) -> tuple[str, str]:
    scheme = group.finished[0].config.get("scheme") or {}
    return str(scheme.get("name")), str(scheme.get("method"))


def _model(group: Group) -> str:
    return str((group.finished[0].config.get("model") or {}).get("name"))


def _data(group: Group) -> str:
    return str(group.finished[0].protocol["data"])


def _images(group: Group) -> str:
    data = group.finished[0].config.get("data") or {}
    return repr([data.get(key) for key in SUBSET])


def _point(group: Group) -> str:
    return repr(_entry(group).grid)


def _entry(group: Group) -> Entry:
    return group.members[0].row.entry
