"""Accuracy of each class, and which classes are taken for which, from the stored predictions."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import numpy as np
import numpy.typing as npt

from kdschemes.config.parse import parse_json
from kdschemes.report.charts.base import chart
from kdschemes.report.document import Chart, Section, Table
from kdschemes.report.formatting import accuracy, mean_of, mean_std, primary_head
from kdschemes.report.groups import Group
from kdschemes.report.predictions import Stored
from kdschemes.report.style import INK, PANEL

Counts = npt.NDArray[np.int64]

MOST_GROUPS = 6

MOST_CLASSES = 100
"""Maximum number of rows of the table: the classes on which the groups differ most."""

MOST_CELLS = 20
"""Maximum number of classes of a matrix; of more, only the most frequent confusions are shown."""

MOST_PAIRS = 10


def classes_section(groups: Sequence[Group], stored: Stored, baseline: str | None, best: str | None) -> Section | None:
    """Return accuracy by class of the baseline, the best and the most accurate groups; confusions of the first two.

    All on the test set after the last epoch; None if no predictions are stored.
    """
    found = {group.label: counts for group in groups if (counts := _confusions(group, stored))}
    if not found:
        return None
    ranked = sorted(
        (group for group in groups if group.label in found),
        key=lambda group: (group.label not in (baseline, best), -mean_of(accuracy(group).values() or [0.0])),
    )
    shown = [group.label for group in groups if group in ranked[:MOST_GROUPS]]
    size = len(found[shown[0]][0])
    shown = [label for label in shown if len(found[label][0]) == size]
    names = _names(next(group for group in groups if group.label == shown[0]), size)
    chosen = [label for label in dict.fromkeys((baseline, best)) if label in shown] or shown[:1]
    charts = [
        _matrix(f"confusion{f'_{number}' if number > 1 else ''}", label, found[label], names)
        for number, label in enumerate(chosen, 1)
        if size <= MOST_CELLS
    ]
    tables = [_by_class(shown, found, names), _pairs(chosen, found, names)]
    return Section(title="Classes", tables=[table for table in tables if table.rows], charts=charts)


def confusion(labels: Counts, predicted: Counts, size: int) -> Counts:
    """Return how many images of class i (row) were given class j (column), [size, size]."""
    return np.bincount(labels * size + predicted, minlength=size * size).reshape(size, size)


def _confusions(group: Group, stored: Stored) -> list[Counts]:
    """Return the matrix of each finished run of a group."""
    head = primary_head(group)
    runs = [(one.labels["test"], one.heads[head]["test"].classes) for one in stored.with_head(group, head).values()]
    size = 1 + max((int(max(labels.max(), classes.max())) for labels, classes in runs), default=0)
    names = _listed(group)
    return [confusion(labels, classes, max(size, len(names))) for labels, classes in runs]


def _listed(group: Group) -> list[str]:
    """Return the names of the classes that the exported network has; [] if it does not say."""
    try:
        found = parse_json((group.finished[0].folder / "config.json").read_bytes())["label_names"]
        return [str(name) for name in found]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _names(group: Group, size: int) -> list[str]:
    names = _listed(group)
    return names if len(names) == size else [str(index) for index in range(size)]


def _percent(matrix: Counts) -> npt.NDArray[np.float64]:
    """Return a matrix in percent of the images of each true class; rows without images are NaN."""
    with np.errstate(invalid="ignore"):
        shares: npt.NDArray[np.float64] = 100 * matrix / matrix.sum(axis=1, keepdims=True)
    return shares


def _mean(matrices: Sequence[Counts]) -> npt.NDArray[np.float64]:
    mean: npt.NDArray[np.float64] = np.mean([_percent(matrix) for matrix in matrices], axis=0)
    return mean


def _by_class(shown: Sequence[str], found: dict[str, list[Counts]], names: Sequence[str]) -> Table:
    right = {label: [np.diag(_percent(matrix)) for matrix in found[label]] for label in shown}
    means = np.array([np.mean(right[label], axis=0) for label in shown])
    images = found[shown[0]][0].sum(axis=1)
    spread = np.where(images > 0, means.max(axis=0) - means.min(axis=0), -1.0)
    kept = sorted(np.argsort(-spread, kind="stable")[:MOST_CLASSES]) if len(names) > MOST_CLASSES else range(len(names))
    rows = [
        [names[index], str(images[index]), *(mean_std([float(of[index]) for of in right[label]], 1) for label in shown)]
        for index in kept
        if images[index]
    ]
    caption = "Percentage of the test images of each class that the reported heads classify correctly, over seeds."
    if len(names) > MOST_CLASSES:
        caption += f" The {MOST_CLASSES} of {len(names)} classes on which the runs differ most."
    return Table(columns=("class", "images", *shown), rows=rows, caption=caption)


def _pairs(chosen: Sequence[str], found: dict[str, list[Counts]], names: Sequence[str]) -> Table:
    """Return the most frequent confusions of the last of some groups, beside those of the others."""
    means = {label: np.nan_to_num(_mean(found[label])) for label in chosen}
    errors = means[chosen[-1]].copy()
    np.fill_diagonal(errors, 0.0)
    order = np.argsort(-errors, axis=None, kind="stable")[:MOST_PAIRS]
    places = [divmod(int(place), len(names)) for place in order if errors.flat[place] > 0]
    rows = [
        [f"{names[true]}, taken for {names[given]}", *(f"{means[label][true, given]:.1f}" for label in chosen)]
        for true, given in places
    ]
    caption = f"The most frequent confusions of {chosen[-1]}, in percent of the true class's images, mean over seeds."
    return Table(columns=("class", *chosen), rows=rows, caption=caption)


def _matrix(name: str, label: str, matrices: Sequence[Counts], names: Sequence[str]) -> Chart:
    mean = _mean(matrices)
    wrong = max(1e-9, float(np.nanmax(np.where(np.eye(len(names), dtype=bool), 0.0, mean))))
    rows = [
        {"true": names[i], "given": names[j], "percent": round(float(mean[i, j]), 2)}
        | {"text": f"{mean[i, j]:.0f}" if mean[i, j] >= 0.5 else "", "right": i == j}
        | {"ink": "white" if mean[i, j] < 0.45 * wrong else "black"}
        for i in range(len(names))
        for j in range(len(names))
        if np.isfinite(mean[i, j]) and (i == j or mean[i, j] > 0)
    ]
    angle = -40 if max(map(len, names)) > 4 else 0
    base = chart(rows).encode(
        x=alt.X("given:N", sort=list(names), title="class given", axis=alt.Axis(labelAngle=angle, ticks=False)),
        y=alt.Y("true:N", sort=list(names), title="true class", axis=alt.Axis(ticks=False)),
    )
    tips = ["true:N", "given:N", "percent:Q"]
    scale = alt.Scale(scheme="cividis", domain=[0, wrong], nice=False)
    errors = base.transform_filter("!datum.right")
    hits = base.transform_filter("datum.right")
    spec = alt.layer(
        hits.mark_rect(cornerRadius=2, color=PANEL).encode(tooltip=tips),
        errors.mark_rect(cornerRadius=2).encode(color=alt.Color("percent:Q", scale=scale, legend=None), tooltip=tips),
        errors.mark_text(fontSize=11).encode(text="text:N", color=alt.Color("ink:N", scale=None, legend=None)),
        hits.mark_text(fontSize=11, fontWeight=600, color=INK).encode(text="text:N"),
    ).resolve_scale(color="independent")
    caption = (
        f"{label}: how many percent of the test images of a true class (row) are given each class (column), mean over "
        f"{len(matrices)} {'seed' if len(matrices) == 1 else 'seeds'}; the diagonal is correct."
    )
    return Chart(name=name, spec=spec.properties(width=alt.Step(46), height=30 * len(names)), caption=caption)
