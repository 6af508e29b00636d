"""The color and dash of each group, the same in all charts of a report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import altair as alt

from kdschemes.printable import printable
from kdschemes.report.groups import Group
from kdschemes.report.style import DASHES, INK, LEGEND_LINE, SERIES, ramp, wrapped

LEGEND_CHARACTERS = 115
"""Characters in one row of a legend."""

LONG_DASH = [12, 3]

FEW = len(SERIES) + 1
"""Maximum number of groups with one color each; more are colored by what they have in common."""


@dataclass(frozen=True, kw_only=True)
class Hue:
    """Colors by name. `of` gives each group's name by its label; `title` is "" if the names are self-explanatory.

    If groups of one color differ in a second number, `dash_title` is its name and `dashes` has it by label.
    """

    title: str
    of: Mapping[str, str]
    names: Sequence[str]
    colors: Sequence[str]
    dash_title: str = ""
    dashes: Mapping[str, str] = field(default_factory=dict)

    def only(self, names: Iterable[str], more: Mapping[str, str] | None = None) -> Hue:
        """Return these colors restricted to the given names, followed by `more`."""
        all_of_them = dict(zip(self.names, self.colors, strict=True)) | dict(more or {})
        wanted = set(names)
        kept = {name: color for name, color in all_of_them.items() if name in wanted}
        return replace(self, names=list(kept), colors=list(kept.values()))

    def dash_of(self, label: str) -> str | None:
        """Return the second number of a group; the first of all for a group without one."""
        return self.dashes.get(label, min(self.dashes.values(), key=float, default=None))

    def color(self) -> alt.Color:
        """Return the encoding of the field "hue" as colors; long names have a legend of fewer columns."""
        scale = alt.Scale(domain=list(self.names), range=list(self.colors))
        if len(self.names) < 2:
            return alt.Color("hue:N", scale=scale, sort=list(self.names), legend=None)
        columns = max(1, min(3, LEGEND_CHARACTERS // min(LEGEND_LINE, max(map(len, self.names)))))
        labels, _ = wrapped((printable(name, lines=True) for name in self.names), LEGEND_LINE)
        legend = alt.Legend(columns=columns, labelExpr=labels)
        return alt.Color("hue:N", scale=scale, sort=list(self.names), title=self.title or None, legend=legend)

    def dash(self) -> alt.StrokeDash:
        """Return the encoding as dashes: of the second number, else of "hue", which shares the legend of the colors."""
        if self.dash_title:
            values = sorted(set(self.dashes.values()), key=float)
            scale = alt.Scale(domain=values, range=[*DASHES, LONG_DASH][: len(values)])
            return alt.StrokeDash("dash:N", scale=scale, sort=values, title=self.dash_title)
        dashes = [DASHES[(index // FEW) % len(DASHES)] for index in range(len(self.names))]
        scale = alt.Scale(domain=list(self.names), range=dashes)
        return alt.StrokeDash("hue:N", scale=scale, sort=list(self.names), title=self.title or None)


def hue(groups: Sequence[Group], baseline: str | None = None) -> Hue:
    """Return the colors of groups; the group labeled `baseline` gets the ink color.

    Up to 8 groups have a color each, in the order of the numbers of their grid, if it has any. More are colored by
    their variant, else by the numbers of their first grid key, with dashes for those of the second; else by scheme and
    method; if that is more than 8 names too, by scheme.
    """
    own = {group.label: group.label for group in groups}
    keys = numeric_keys(groups)
    if len(groups) <= FEW:
        return _in_order(groups, keys, baseline) if keys else _nominal(own, baseline)
    ways: list[tuple[str, Callable[[Group], str | None]]] = [("", lambda group: group.members[0].row.entry.variant)]
    if keys:
        ways.append((leaf(keys[0]), lambda group: _number(group, keys[0]) or _alone(group, groups, keys[0])))
    ways += [("", _method), ("", lambda group: _method(group).partition(" ")[0])]
    for title, way in ways:
        names = {group.label: way(group) for group in groups}
        named = {label: found for label, found in names.items() if found is not None}
        if len(named) == len(groups) and 1 < len(set(named.values())) <= FEW:
            return _ordered(title, named, groups, keys) if title else _nominal(named, named.get(baseline or ""))
    return _nominal(dict.fromkeys(own, "all"), "all")


def _alone(group: Group, groups: Sequence[Group], key: str) -> str | None:
    """Return the label of the only group without a number of a key, such as that of alpha = 0 without T."""
    return group.label if sum(_number(other, key) is None for other in groups) == 1 else None


def _in_order(groups: Sequence[Group], keys: Sequence[str], ink: str | None) -> Hue:
    """Return a color for each group: those with numbers along the scale, in the order of variants and numbers."""
    variants = list(dict.fromkeys(group.members[0].row.entry.variant for group in groups))

    def place(group: Group) -> tuple[object, ...]:
        entry = group.members[0].row.entry
        return (variants.index(entry.variant), *(float(entry.grid.get(key, "-inf")) for key in keys))

    ordered = sorted(groups, key=place)
    numbered = [group.label for group in ordered if any(key in group.members[0].row.entry.grid for key in keys)]
    others = [group.label for group in ordered if group.label not in numbered]
    colors = dict(zip(numbered, ramp(len(numbered)), strict=True)) | dict(zip(others, SERIES, strict=False))
    colors |= {ink: INK} if ink in colors else {}
    names = [group.label for group in ordered]
    return Hue(title="", of={name: name for name in names}, names=names, colors=[colors[name] for name in names])


def few_colors(labels: Sequence[str], hue: Hue) -> list[str]:
    """Return a color for each of up to 8 groups: that of `hue` where it distinguishes them, else one color each."""
    given = dict(zip(hue.names, hue.colors, strict=True))
    colors = [given[hue.of[label]] for label in labels]
    return colors if len(set(colors)) == len(colors) else [INK, *SERIES][: len(labels)]


def leaf(key: str) -> str:
    """Return the last part of a configuration key."""
    return key.rpartition(".")[2]


def numeric_keys(groups: Sequence[Group]) -> list[str]:
    """Return the keys of a grid that are numbers in all groups that have them, and have two or more values."""
    grids = [group.members[0].row.entry.grid for group in groups]
    keys = dict.fromkeys(key for grid in grids for key in grid)
    values = {key: [grid[key] for grid in grids if key in grid] for key in keys}
    return [key for key, found in values.items() if all(map(_is_number, found)) and len(set(found)) > 1]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(group: Group, key: str) -> str | None:
    value = group.members[0].row.entry.grid.get(key)
    return None if value is None else f"{value:g}"


def _method(group: Group) -> str:
    scheme = group.members[0].config.get("scheme") or {}
    return f"{scheme.get('name', '?')} {scheme.get('method', '')}".strip()


def _nominal(of: Mapping[str, str], ink: str | None) -> Hue:
    names = list(dict.fromkeys(of.values()))
    others = [name for name in names if name != ink]
    colors = {name: SERIES[index % len(SERIES)] for index, name in enumerate(others)}
    return Hue(title="", of=of, names=names, colors=[colors.get(name, INK) for name in names])


def _ordered(title: str, of: Mapping[str, str], groups: Sequence[Group], keys: Sequence[str]) -> Hue:
    numbers = {name for group in groups if (name := _number(group, keys[0])) is not None}
    names = [*sorted(numbers, key=float), *(name for name in dict.fromkeys(of.values()) if name not in numbers)]
    colors = [*ramp(len(numbers)), *[INK] * (len(names) - len(numbers))]
    dashes = {g.label: value for g in groups if len(keys) == 2 and (value := _number(g, keys[1])) is not None}
    few = 1 < len(set(dashes.values())) <= len(DASHES) + 1
    more = {"dash_title": leaf(keys[1]), "dashes": dashes} if few else {}
    return Hue(title=title, of=of, names=names, colors=colors, **more)  # type: ignore[arg-type]
