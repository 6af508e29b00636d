"""A study's grid: accuracy over one key as lines, over two as a heat map."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import altair as alt

from kdschemes.report.charts.base import chart, numbers, percents
from kdschemes.report.colors import Hue, leaf, numeric_keys
from kdschemes.report.document import Chart, Section
from kdschemes.report.formatting import accuracy, by_seed, mean_of, shared_teacher, std_of
from kdschemes.report.groups import Group
from kdschemes.report.style import INK, SERIES, ramp

APART = 3.0
"""How far a level may be from the points beside it, in ranges of these."""

ANY = "any"
"""The value, in a heat map, of a key that a point does not use."""


@dataclass(frozen=True, kw_only=True)
class _Point:
    """A group in the grid: its numbers by key, its other labels, its mean and std over seeds, its seeds.

    It has no number of a key that it does not use: it is the same for all its values.
    """

    at: Mapping[str, float]
    rest: str
    mean: float
    std: float
    seeds: Mapping[int, float]


def grid(groups: Sequence[Group]) -> Section | None:
    """Return the charts over the numbers of a study's grid; None if no key has two or more values."""
    own = [group for group in groups if not group.earlier]
    keys = numeric_keys(own)[:2]
    points = [point for group in own if (point := _point(group, keys))]
    if not keys or not points:
        return None
    names = {key: leaf(key) if [leaf(one) for one in keys].count(leaf(key)) == 1 else key for key in keys}
    charts = []
    if len(keys) == 2:
        whole = [point for point in points if len(point.at) == 2]
        ends = [point.mean for point in points if point.at]
        for number, rest in enumerate(dict.fromkeys(point.rest for point in whole)):
            of = [point for point in points if point.at and point.rest == rest]
            ending = f"_{number + 1}" if number else ""
            charts.append(_heat_map(of, names, f"heat_map{ending}", (min(ends), max(ends)), rest))
            by, along = _axes(of, keys)
            each = [point for point in of if len(point.at) == 2] + _repeated([p for p in of if along in p.at], by)
            charts.append(_lines(each, along, names, f"lines{ending}", by, rest))
    else:
        constant = [*(point for point in points if not point.at), *_teachers(own)]
        points = [point for point in points if point.at]
        charts.append(_lines(points, keys[0], names, "lines", None, "", constant))
    title = f"Effect of {' and '.join(names.values())}"
    missing = [group.label for group in own if not accuracy(group)]
    text = f"No finished runs yet at: {', '.join(missing)}." if missing else ""
    return Section(title=title, text=text, charts=charts)


def _point(group: Group, keys: Sequence[str]) -> _Point | None:
    seeds = accuracy(group)
    if not seeds or not all(map(math.isfinite, seeds.values())):
        return None
    entry = group.members[0].row.entry
    rest = [entry.variant] if entry.variant is not None else []
    rest += [f"{leaf(key)}={value}" for key, value in entry.grid.items() if key not in keys]
    at = {key: float(entry.grid[key]) for key in keys if key in entry.grid}
    return _Point(at=at, rest=" ".join(rest), mean=mean_of(seeds.values()), std=std_of(seeds.values()), seeds=seeds)


def _axes(points: Sequence[_Point], keys: Sequence[str]) -> tuple[str, str]:
    """Return the key that has a line for each value, and the key along the axis, which every point must have."""
    by, along = keys
    return (by, along) if all(along in point.at for point in points) else (along, by)


def _repeated(points: Sequence[_Point], by: str) -> list[_Point]:
    """Return the points that have no number of the key `by` as points of each of its lines."""
    values = sorted({point.at[by] for point in points if by in point.at})
    single = [point for point in points if by not in point.at]
    return [replace(point, at={**point.at, by: value}) for value in values for point in single]


def _teachers(groups: Sequence[Group]) -> list[_Point]:
    """Return the teacher of all groups that have one, if it is the same."""
    found = {}
    for group in groups:
        for teacher in {str(result["teacher"]) for result in group.results if result.get("teacher")}:
            seeds = by_seed(group, teacher, "last", "top1")
            if shared_teacher(group, teacher):
                seeds = dict(list(seeds.items())[:1])
            found[round(mean_of(seeds.values()), 2)] = seeds
    return [
        _Point(at={}, rest="teacher", mean=mean, std=std_of(seeds.values()), seeds=seeds)
        for mean, seeds in found.items()
        if len(found) == 1
    ]


def _heat_map(
    points: Sequence[_Point], names: Mapping[str, str], name: str, ends: tuple[float, float], rest: str
) -> Chart:
    down, along = names
    middle = ends[0] + 0.45 * (ends[1] - ends[0])
    rows = [
        {"x": _value(point, along), "y": _value(point, down), "top1": round(point.mean, 2)}
        | {"mean": f"{point.mean:.2f}", "std": f"± {point.std:.2f}" if len(point.seeds) > 1 else ""}
        | {"seeds": len(point.seeds), "dark": "white" if point.mean < middle else "black"}
        for point in points
    ]
    orders = {key: [f"{value:g}" for value in sorted({p.at[key] for p in points if key in p.at})] for key in names}
    any_of = {key: [ANY] if any(key not in point.at for point in points) else [] for key in names}
    axis = alt.Axis(labelAngle=0, ticks=False, domain=False)
    base = chart(rows).encode(
        x=alt.X("x:O", sort=[*orders[along], *any_of[along]], title=names[along], axis=axis),
        y=alt.Y("y:O", sort=[*orders[down][::-1], *any_of[down]], title=names[down], axis=axis),
    )
    scale = alt.Scale(scheme="cividis", domain=list(ends), nice=False)
    of_keys = [alt.Tooltip("x:O", title=names[along]), alt.Tooltip("y:O", title=names[down])]
    tips = [*of_keys, "mean:N", "std:N", "seeds:Q"]
    cells = base.mark_rect(cornerRadius=2).encode(color=alt.Color("top1:Q", scale=scale, legend=None), tooltip=tips)
    ink = alt.Color("dark:N", scale=None, legend=None)
    spec = alt.layer(
        cells,
        base.mark_text(fontSize=13, fontWeight=600, dy=-6).encode(text="mean:N", color=ink),
        base.mark_text(fontSize=10, dy=9).encode(text="std:N", color=ink),
    ).resolve_scale(color="independent")
    caption = (
        f"{f'{rest}: t' if rest else 'T'}est top-1 in percent after the last epoch over {names[down]} and "
        f"{names[along]}: mean and sample std over seeds."
    )
    for key in (key for key in names if any_of[key]):
        caption += f" {ANY.capitalize()}: one point, which is the same whatever {names[key]} is."
    height = 48 * len(orders[down] + any_of[down])
    return Chart(name=name, spec=spec.properties(width=alt.Step(88), height=height), caption=caption)


def _value(point: _Point, key: str) -> str:
    return f"{point.at[key]:g}" if key in point.at else ANY


def _lines(
    points: Sequence[_Point],
    key: str,
    names: Mapping[str, str],
    name: str,
    by: str | None,
    rest: str,
    constant: Sequence[_Point] = (),
) -> Chart:
    """Return lines over `key`, one for each value of the key `by`, or for anything else in which the points differ.

    `constant` points, which have no such key, are dashed horizontal lines; one that is too far from the others, as a
    much larger teacher is, would hide their differences, and is only in the caption.
    """
    means_of = [point.mean for point in points]
    room = APART * (max(means_of) - min(means_of) or 1.0)
    far = [point for point in constant if not min(means_of) - room <= point.mean <= max(means_of) + room]
    constant = [point for point in constant if point not in far]
    if constant and by is None:
        points = [replace(point, rest=point.rest or "runs") for point in points]
    hue = _numbers(points, by, names) if by is not None else _kinds([*points, *constant])
    means: list[dict[str, Any]] = []
    dots: list[dict[str, Any]] = []
    for point in points:
        of = {"hue": f"{point.at[by]:g}" if by else point.rest, "x": point.at[key]}
        means.append(
            of
            | {"mean": round(point.mean, 3), "std": round(point.std, 3), "seeds": len(point.seeds)}
            | {"low": round(point.mean - point.std, 3), "high": round(point.mean + point.std, 3)}
        )
        dots += [of | {"seed": seed, "top1": round(value, 3)} for seed, value in point.seeds.items()]
    values = sorted({point.at[key] for point in points})
    axis = alt.Axis(values=values, grid=False, labelOverlap=True, format="~g")
    x = alt.X("x:Q", title=names[key], axis=axis, scale=numbers(values, padding=16))
    shown = [row[end] for row in means for end in ("low", "high")] + [row["top1"] for row in dots]
    scale = percents([*shown, *(point.mean for point in constant)])
    y = alt.Y("mean:Q", title="test top-1 (%)", scale=scale)
    tips = [alt.Tooltip("x:Q", title=names[key]), "mean:Q", "std:Q", "seeds:Q"]
    base = chart(means).encode(x=x, color=hue.color())
    layers = [
        base.mark_rule(strokeWidth=1.5, opacity=0.7, clip=True).encode(y=alt.Y("low:Q", scale=scale), y2="high:Q"),
        base.mark_line().encode(y=y, strokeDash=hue.dash()),
        base.mark_point(filled=True, size=60, opacity=1).encode(y=y, tooltip=tips),
    ]
    if by is None:
        seeds = chart(dots).encode(x=x, y=alt.Y("top1:Q", scale=scale), color=hue.color())
        layers.insert(0, seeds.mark_point(filled=True, size=22, opacity=0.45).encode(tooltip=["seed:Q", "top1:Q"]))
    if constant:
        rows = [{"hue": point.rest, "mean": round(point.mean, 3), "std": round(point.std, 3)} for point in constant]
        levels = chart(rows).mark_rule(strokeWidth=1.5, strokeDash=[6, 4])
        layers.append(
            levels.encode(y=alt.Y("mean:Q", scale=scale), color=hue.color(), tooltip=["hue:N", "mean:Q", "std:Q"])
        )
    caption = (
        f"{f'{rest}: t' if rest and by else 'T'}est top-1 after the last epoch over {names[key]}"
        f"{f', one line per {names[by]}' if by else ''}: mean over seeds, bars of one sample std to both sides"
        f"{'' if by else ', small dots are seeds'}"
        f"{f'; dashed: {_listed(constant)}, whatever {names[key]} is' if constant else ''}."
    )
    caption += "".join(f" Beyond the axis: {point.rest}, {point.mean:.2f} %." for point in far)
    return Chart(name=name, spec=alt.layer(*layers).properties(width="container", height=320), caption=caption)


def _listed(points: Sequence[_Point]) -> str:
    *first, last = (point.rest for point in points)
    return f"{', '.join(first)} and {last}" if first else last


def _kinds(points: Sequence[_Point]) -> Hue:
    found = list(dict.fromkeys(point.rest for point in points))
    colors = (SERIES[0],) if len(found) == 1 else (INK, *SERIES)
    return Hue(title="", of={}, names=found, colors=[colors[i % len(colors)] for i in range(len(found))])


def _numbers(points: Sequence[_Point], by: str, names: Mapping[str, str]) -> Hue:
    found = [f"{value:g}" for value in sorted({point.at[by] for point in points})]
    return Hue(title=names[by], of={}, names=found, colors=ramp(len(found)))
