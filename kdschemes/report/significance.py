"""Methods against their baseline: a paired test over seeds each, as a table and in a few sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kdschemes.config.data import SUBSET
from kdschemes.report.document import Table
from kdschemes.report.formatting import NOTHING, accuracy, listed, mean_std, p_value, probability
from kdschemes.report.groups import Group
from kdschemes.report.statistics import LEAST_SEEDS, Paired, paired, verdicts
from kdschemes.study.record import Entry

NOT_COMPARABLE = ("data", "data.split_seed", "test images")
"""Keys of a protocol: groups that differ in one of them are never compared."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A group against its baseline, by test top-1 of the reported heads after the last epoch, in points.

    `differs` lists the keys in which their protocols differ, or "model"; `p` is Holm-corrected over all comparisons
    of a report.
    """

    group: Group
    against: Group
    paired: Paired
    p: float
    verdict: str
    differs: tuple[str, ...] = ()


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


def compare_groups(groups: Sequence[Group], baseline: str | None = None) -> list[Comparison]:
    """Compare every group with its baseline (`baseline_of`), in the order of the groups."""
    against = baseline_of(groups, baseline)
    pairs = [(group, against[group.label]) for group in groups if group.label in against and group.finished]
    differ = [_differences(group, base) for group, base in pairs]
    refused = [next((f"not compared: other {key}" for key in keys if key in NOT_COMPARABLE), "") for keys in differ]
    tests = [
        paired({}, {}) if why else paired(accuracy(group), accuracy(base))
        for (group, base), why in zip(pairs, refused, strict=True)
    ]
    found = zip(pairs, tests, verdicts(tests), refused, differ, strict=True)
    return [
        Comparison(group=group, against=base, paired=test, p=p, verdict=why or verdict, differs=differs)
        for (group, base), test, (p, verdict), why, differs in found
    ]


def comparison_table(found: Sequence[Comparison]) -> Table:
    """Return the table of comparisons."""
    several = len(baselines(found)) > 1
    differing = any(each.differs for each in found)
    columns = ("run", *(["against"] if several else []), "common seeds", "difference", "95 % interval", "p", "verdict")
    rows = [
        [
            each.group.label,
            *([each.against.label] if several else []),
            str(each.paired.n),
            _signed(each.paired.mean_difference),
            f"{_signed(each.paired.low)} to {_signed(each.paired.high)}" if each.paired.n > 1 else NOTHING,
            p_value(each.p),
            each.verdict,
            *([", ".join(each.differs) or NOTHING] if differing else []),
        ]
        for each in found
    ]
    tested = sum(each.paired.n >= LEAST_SEEDS for each in found)
    against = "its baseline" if several else found[0].against.label
    caption = (
        f"Each run against {against}: difference in points of test top-1 of the reported heads after the last epoch, "
        "paired by seed, two-sided t test. The interval is for a single comparison"
    )
    caption += f"; p is Holm-corrected for {tested} comparisons." if tested > 1 else "."
    return Table(columns=(*columns, "differs in") if differing else columns, rows=rows, caption=caption)


def baselines(found: Sequence[Comparison]) -> list[str]:
    """Return the labels of the groups that others are compared with."""
    return list(dict.fromkeys(each.against.label for each in found))


def sentences(found: Sequence[Comparison]) -> list[str]:
    """Return the outcome in a few sentences, significant differences first."""
    bases = baselines(found)
    top = {each.against.label: mean_std(accuracy(each.against).values(), 2) for each in found}
    named = ", ".join(f"**{label}** ({top[label]} %)" for label in bases[:3]) + (", ..." if len(bases) > 3 else "")
    lines = [f"Test top-1 after the last epoch against {named}, paired by seed:"]
    for verdict in ("better", "worse"):
        of = [each for each in found if each.verdict == verdict]
        of.sort(key=lambda each: -abs(each.paired.mean_difference))
        lines += [
            f"**{each.group.label}** is {verdict}: {_signed(each.paired.mean_difference)} points (95 % interval "
            f"{_signed(each.paired.low)} to {_signed(each.paired.high)}, {probability(each.p)}, {each.paired.n} seeds)"
            + (f", but differs in {', '.join(each.differs)} too." if each.differs else ".")
            for each in of
        ]
    rest: dict[str, list[str]] = {}
    for each in found:
        if each.verdict not in ("better", "worse"):
            rest.setdefault(each.verdict, []).append(each.group.label)
    lines += [f"{verdict[0].upper()}{verdict[1:]}: {listed(labels)}." for verdict, labels in rest.items()]
    return lines


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


def _signed(value: float) -> str:
    return NOTHING if value != value else f"{value:+z.2f}"
