"""Knowledge transfer between already trained networks, on IID or non-IID data, and what they forget."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import altair as alt

from kdschemes.config.losses.response import KD
from kdschemes.config.schemes.offline import OfflineKD
from kdschemes.errors import UserError
from kdschemes.report.analyses import evidence
from kdschemes.report.analyses.transfer import (
    Change,
    Mask,
    Transfer,
    seen_classes,
    start_config,
    start_folder,
    transfer,
)
from kdschemes.report.charts.base import chart
from kdschemes.report.document import Chart, Section, Table
from kdschemes.report.formatting import NOTHING, mean_std
from kdschemes.report.groups import Group
from kdschemes.report.statistics import BySeed, against_zero, difference, mean_by_seed, paired

TITLE = "Transfer between trained networks"

ALONE, KD_DEFAULT, KD_TUNED, DML, DPKD = "labels alone", "KD", "tuned KD", "DML", "DPKD"

COMPARED = (ALONE, KD_DEFAULT, KD_TUNED, DML, DPKD)

METHODS = {evidence.CROSS_ENTROPY: ALONE, ("offline", "dpkd"): DPKD, ("online", "dml"): DML}

COLUMNS = ("test top-1 %", "own classes %", "unseen classes %", "forgetting", "positive flips %", "negative flips %")


@dataclass(frozen=True, kw_only=True)
class Place:
    """How the peers' data differ, and whose images are used for the transfer."""

    skew: float | None
    own: bool

    def __str__(self) -> str:
        data = "IID" if self.skew is None else f"non-IID ({self.skew:g})"
        return f"{data}, own images" if self.own else f"{data}, teacher's images"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Temperature and weight of the soft term of distillation."""

    temperature: float
    alpha: float

    def __str__(self) -> str:
        return f"T={self.temperature:g}, alpha={self.alpha:g}"


@dataclass(frozen=True, kw_only=True)
class Point:
    """A method at a place; `setting` distinguishes the runs of KD."""

    place: Place
    method: str
    setting: Setting | None = None


DEFAULT = Setting(temperature=KD().temperature, alpha=OfflineKD().alpha)
"""KD's setting without tuning."""

Runs = dict[int, Transfer]
"""Runs by seed."""

Grid = dict[Setting, Runs]


def collaborative(groups: Sequence[Group]) -> list[Section]:
    """Return what students gain and forget, by their data, the transfer images and the method.

    Tuned KD is, for each seed, the setting with the best accuracy on the validation split.
    """
    found, left_out = evidence.by_point(groups, _point)
    notes = [*evidence.missing(groups), *_lost(groups), *left_out]
    measured = _measured(found, notes)
    places = list(dict.fromkeys(point.place for point in measured))
    grids = {place: _grid(measured, place) for place in places}
    methods = {place: _methods(measured, place, grids[place]) for place in places}
    compared = [place for place in places if len(methods[place]) > 1]
    if not compared:
        why = "Nothing to compare yet: this needs two methods on the same images, starting from the same networks."
        return [Section(title=TITLE, text=evidence.paragraphs(notes, why))]
    reading = (
        "On the test set after the last epoch, in percent. Own classes are those of which the student had images "
        "before the transfer. Forgetting is the mean over classes of max(0, top-1 before - top-1 after). Positive "
        "flips are images classified wrongly before and correctly after, negative flips the opposite. Labels alone: "
        "the student trains on without a teacher, with the same images and steps. Non-IID (a): the shares that peers "
        "have of a class are drawn from Dirichlet(a)."
    )
    tables = [_table(place, methods[place]) for place in compared]
    tables += [_settings(place, grids[place]) for place in compared if len(grids[place]) > 1]
    charts = [
        _chart(f"collaborative_{key}_{number}", {p: methods[p] for p in compared if p.skew == skew}, key, title)
        for number, skew in enumerate(dict.fromkeys(place.skew for place in compared), start=1)
        for key, title in (("top1", "test top-1 (%)"), ("forgetting", "forgetting (points)"))
    ]
    text = evidence.paragraphs(*_claims(methods), notes, reading, evidence.RULE)
    return [Section(title=TITLE, text=text, tables=tables, charts=charts)]


def tuned(grid: Mapping[Setting, Mapping[int, Transfer]]) -> Runs:
    """Return for each seed the run with the best validation accuracy; in a tie, that of the first setting.

    Only seeds that every setting has are used, so that all seeds choose from the same settings.
    """
    if not grid:
        return {}
    seeds = sorted(set.intersection(*(set(runs) for runs in grid.values())))
    offers = {seed: [runs[seed] for runs in grid.values()] for seed in seeds}
    return {
        seed: max(runs, key=lambda run: run.val) for seed, runs in offers.items() if all(r.val == r.val for r in runs)
    }


def _lost(groups: Sequence[Group]) -> list[str]:
    """Return a sentence for each group whose runs started from a run that no longer exists."""
    begun = [group for group in groups if group.finished and start_folder(group.finished[0]) is not None]
    lost = [group for group in begun if start_config(group.finished[0]) is None]
    return [f"Left out: {group.label}. {start_folder(group.finished[0])} no longer exists." for group in lost]


def _point(group: Group) -> Point | None:
    start = start_config(group.finished[0])
    if start is None:
        return None
    place = Place(
        skew=evidence.setting(group, "data.dirichlet_alpha"),
        own=evidence.setting(group, "data.partition") == start.data.partition,
    )
    way = evidence.method(group)
    if way == ("offline", "kd"):
        temperature = evidence.setting(group, "losses.response.temperature")
        if temperature is None:
            return None
        at = Setting(temperature=float(temperature), alpha=float(evidence.setting(group, "scheme.alpha")))
        return Point(place=place, method=KD_DEFAULT, setting=at)
    return Point(place=place, method=METHODS[way]) if way in METHODS else None


def _measured(found: Mapping[Point, Group], notes: list[str]) -> dict[Point, Runs]:
    """Return the runs of each point; `notes` receives a sentence for each run that cannot be used."""
    seen: dict[str, Mask] = {}
    measured: dict[Point, Runs] = {}
    for point, group in found.items():
        for member in group.finished:
            try:
                start = start_config(member)
                if start is None:
                    raise UserError(f"{start_folder(member)} no longer exists.")
                data = repr(start.data)
                if data not in seen:
                    seen[data] = seen_classes(start)
                measured.setdefault(point, {})[member.row.entry.seed] = transfer(member, seen[data])
            except UserError as error:
                notes.append(f"Left out: {member.row.entry.label}. {error}")
    return measured


def _grid(measured: Mapping[Point, Runs], place: Place) -> Grid:
    return {point.setting: runs for point, runs in measured.items() if point.place == place and point.setting}


def _methods(measured: Mapping[Point, Runs], place: Place, grid: Grid) -> dict[str, Runs]:
    """Return the runs of each method that has some at a place, in order of comparison."""
    of = {point.method: runs for point, runs in measured.items() if point.place == place and not point.setting}
    of |= {KD_DEFAULT: grid.get(DEFAULT, {}), KD_TUNED: tuned(grid) if len(grid) > 1 else {}}
    return {name: of[name] for name in COMPARED if of.get(name)}


def _after(runs: Mapping[int, Transfer], key: str) -> BySeed:
    return {seed: getattr(run.after, key) for seed, run in runs.items()}


def _claims(methods: Mapping[Place, Mapping[str, Runs]]) -> list[str]:
    """Return the verdicts that the finished runs allow, each over all places that have both methods."""

    def differences(a: str, b: str, key: str, places: Iterable[Place] = methods) -> list[BySeed]:
        both = [methods[place] for place in places if {a, b} <= methods[place].keys()]
        return [difference(_after(of[a], key), _after(of[b], key)) for of in both]

    sentences = []
    if passed := differences(KD_TUNED, ALONE, "top1"):
        claim = (
            "Trained networks pass on what they know (test top-1 of tuned KD against labels alone, mean of all cases)"
        )
        sentences.append(evidence.evaluated(claim, against_zero(mean_by_seed(passed))))
    skewed = differences(KD_TUNED, KD_DEFAULT, "top1", [place for place in methods if place.skew is not None])
    equal = differences(KD_TUNED, KD_DEFAULT, "top1", [place for place in methods if place.skew is None])
    if skewed and equal:
        claim = "Tuning matters most on non-IID data (gain in test top-1 from tuning there, minus that on IID data)"
        sentences.append(evidence.evaluated(claim, paired(mean_by_seed(skewed), mean_by_seed(equal))))
    if kept := differences(KD_DEFAULT, DPKD, "forgetting"):
        claim = "Data-partitioning KD forgets less than KD (forgetting of KD minus its own)"
        sentences.append(evidence.evaluated(claim, against_zero(mean_by_seed(kept))))
    return sentences


def _table(place: Place, methods: Mapping[str, Runs]) -> Table:
    runs = [(seed, run) for of in methods.values() for seed, run in of.items()]
    before = {seed: run.before for seed, run in reversed(runs)}
    teachers = {seed: run.teacher for seed, run in runs if run.teacher is not None}
    rows = [["student before", *_cells(before.values())[:3], *[NOTHING] * 5]]
    if teachers:
        rows.append(["its teacher", *_cells(teachers.values())[:3], *[NOTHING] * 5])
    tested = [name for name in methods if name != ALONE and ALONE in methods]
    tests = [paired(_after(methods[name], "top1"), _after(methods[ALONE], "top1")) for name in tested]
    words = dict(zip(tested, evidence.verdict_cells(tests), strict=True))
    for name, of in methods.items():
        rows.append([name, *_cells([run.after for run in of.values()]), *words.get(name, (NOTHING, NOTHING))])
    caption = f"{place}. Mean ± sample std over seeds; the test compares top-1, against labels alone."
    return Table(columns=(str(place), *COLUMNS, "p (Holm)", "against labels alone"), rows=rows, caption=caption)


def _cells(changes: Iterable[Change]) -> list[str]:
    """Return the mean and std of each number of changes, in the order of `COLUMNS`, without NaN."""
    columns = zip(*map(dataclasses.astuple, changes), strict=True)
    return [mean_std([value for value in column if value == value], 2) for column in columns]


def _settings(place: Place, grid: Grid) -> Table:
    chosen = tuned(grid)
    rows = [
        [
            str(setting),
            mean_std([run.val for run in runs.values()], 2),
            mean_std([run.after.top1 for run in runs.values()], 2),
            f"{sum(run is chosen.get(seed) for seed, run in runs.items())} of {len(chosen)}",
        ]
        for setting, runs in grid.items()
    ]
    columns = (f"KD, {place}", "validation top-1 %", "test top-1 %", "chosen for seeds")
    return Table(columns=columns, rows=rows, caption=f"The settings over which KD is tuned. {place}.")


def _chart(name: str, methods: Mapping[Place, Mapping[str, Runs]], key: str, title: str) -> Chart:
    values = [
        {"method": method, key: getattr(run.after, key), "case": str(place), "seed": seed}
        for place, of in methods.items()
        for method, runs in of.items()
        for seed, run in runs.items()
    ]
    cases = [str(place) for place in methods]
    base = chart(values).encode(
        y=alt.Y("method:N", sort=list(COMPARED), title=None),
        yOffset=alt.YOffset("case:N", sort=cases),
        color=alt.Color("case:N", sort=cases, title=None),
    )
    x = alt.X(f"{key}:Q", scale=alt.Scale(zero=False), title=title)
    spec = alt.layer(
        base.mark_point(filled=True, opacity=0.6).encode(x=x, tooltip=["case:N", "seed:Q", f"{key}:Q"]),
        base.mark_tick(thickness=2).encode(x=alt.X(f"mean({key}):Q")),
    ).properties(width="container", height=alt.Step(14))
    return Chart(name=name, spec=spec, caption="Dots are seeds, bars are means.")
