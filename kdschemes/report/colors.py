"""The color and dash of each group, the same in all charts of a report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import altair as alt

from kdschemes.report.groups import Group
from kdschemes.report.style import DASHES, INK, SERIES, ramp

FEW = len(SERIES) + 1
"""Maximum number of groups with one color each; more are colored by what they have in common."""


@dataclass(frozen=True, kw_only=True)
class Hue:
    """Colors by name. `of` gives each group's name by its label; `title` is "" if the names are self-explanatory."""

    title: str
    of: Mapping[str, str]
    names: Sequence[str]
    colors: Sequence[str]

    def only(self, names: Iterable[str], more: Mapping[str, str] | None = None) -> Hue:
        """Return these colors restricted to the given names, followed by `more`."""
        all_of_them = dict(zip(self.names, self.colors, strict=True)) | dict(more or {})
        wanted = set(names)
        kept = {name: color for name, color in all_of_them.items() if name in wanted}
        return Hue(title=self.title, of=self.of, names=list(kept), colors=list(kept.values()))

    def color(self) -> alt.Color:
        """Return the encoding of the field "hue" as colors."""
        scale = alt.Scale(domain=list(self.names), range=list(self.colors))
        if len(self.names) < 2:
            return alt.Color("hue:N", scale=scale, sort=list(self.names), legend=None)
        return alt.Color("hue:N", scale=scale, sort=list(self.names), title=self.title or None)

    def dash(self) -> alt.StrokeDash:
        """Return the encoding of the field "hue" as dashes; it shares the legend of the colors."""
        dashes = [DASHES[(index // FEW) % len(DASHES)] for index in range(len(self.names))]
        scale = alt.Scale(domain=list(self.names), range=dashes)
        return alt.StrokeDash("hue:N", scale=scale, sort=list(self.names), title=self.title or None)


def hue(groups: Sequence[Group], baseline: str | None = None) -> Hue:
    """Return the colors of groups; the group labeled `baseline` gets the ink color.

    Up to 8 groups have a color each. More are colored by their variant, else by the numbers of their first grid key,
    else by scheme and method; if that is more than 8 names too, by scheme.
    """
    own = {group.label: group.label for group in groups}
    if len(groups) <= FEW:
        return _nominal(own, baseline)
    ways: list[tuple[str, Callable[[Group], str | None]]] = [("", lambda group: group.members[0].row.entry.variant)]
    if keys := numeric_keys(groups):
        ways.append((leaf(keys[0]), lambda group: _number(group, keys[0])))
    ways += [("", _method), ("", lambda group: _method(group).partition(" ")[0])]
    for title, way in ways:
        names = {group.label: way(group) for group in groups}
        named = {label: found for label, found in names.items() if found is not None}
        if len(named) == len(groups) and 1 < len(set(named.values())) <= FEW:
            return _ordered(title, named) if title else _nominal(named, named.get(baseline or ""))
    return _nominal(dict.fromkeys(own, "all"), "all")


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


def _ordered(title: str, of: Mapping[str, str]) -> Hue:
    names = sorted(set(of.values()), key=float)
    return Hue(title=title, of=of, names=names, colors=ramp(len(names)))
