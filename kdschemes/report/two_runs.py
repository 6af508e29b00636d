"""`kdschemes compare`: two runs side by side: their configurations, results, cost and differing predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import stats

from kdschemes.config.naming import NOT_HASHED, flatten
from kdschemes.errors import UserError
from kdschemes.report.charts.agreement import agreement
from kdschemes.report.document import Table
from kdschemes.report.formatting import COSTS, NOTHING, metric, primary_head, probability
from kdschemes.report.groups import Group, Member, member_of
from kdschemes.report.terminal import table_text
from kdschemes.report.write import is_run
from kdschemes.storage.predictions import read_predictions

Classes = npt.NDArray[np.int64]

METRICS = (
    ("top-1 %", "top1", 2),
    ("NLL", "nll", 4),
    ("ECE %", "ece", 2),
    ("agreement with teacher %", "agreement", 2),
    ("KL from teacher", "kl", 4),
)
"""Title, metric and digits of the rows of results."""

NOTHING_PROVED = (
    "Two runs of one seed each prove nothing about their methods: changing the seed changes results too.\n"
    "kdschemes study report compares methods over seeds."
)


def compare(first: str, second: str) -> str:
    """Return the comparison of two runs, by their folders, as text.

    Raises:
        UserError: one is not the folder of a run, or both are the same.
    """
    a, b = (_member(folder) for folder in (first, second))
    if a.folder.resolve() == b.folder.resolve():
        raise UserError(f"{first} and {second} are the same run: give two different runs")
    parts = [f"a: {_named(a)}\nb: {_named(b)}", _configurations(a, b)]
    if a.results is not None and b.results is not None:
        groups = [Group(label=name, members=(member,)) for name, member in (("a", a), ("b", b))]
        parts += [_protocols(a, b), _results(*groups), _cost(*groups), _agreement(*groups)]
    else:
        parts.append("Results are compared when both runs are finished.")
    return "\n\n".join(part for part in [*parts, NOTHING_PROVED] if part)


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p of McNemar's exact test on the images that only one of them classifies correctly.

    Under the null hypothesis of equal accuracy, each of those images is the first's with probability 1/2.
    If there are none, p is 1.
    """
    images = only_first + only_second
    return float(stats.binomtest(only_first, images, 0.5).pvalue) if images else 1.0


def correct(first: Classes, second: Classes, labels: Classes) -> tuple[int, int, int]:
    """Return the number of images that both heads classify correctly, only the first, and only the second."""
    one, two = first == labels, second == labels
    return int((one & two).sum()), int((one & ~two).sum()), int((~one & two).sum())


def _member(folder: str) -> Member:
    path = Path(folder)
    if not is_run(path):
        raise UserError(f"{folder} is not the folder of a run")
    return member_of(path)


def _named(member: Member) -> str:
    row = member.row
    state = "" if member.results is not None else f" ({row.state}, {row.done:.3g} of {row.entry.epochs} epochs)"
    return f"{member.folder}{state}"


def _configurations(a: Member, b: Member) -> str:
    one, two = flatten(a.config), flatten(b.config)
    keys = [key for key in dict.fromkeys([*one, *two]) if key not in NOT_HASHED and one.get(key) != two.get(key)]
    if not keys:
        return "Their configurations are the same." if one and two else "Their configurations cannot be read."
    rows = [[key, *(str(tree[key]) if key in tree else NOTHING for tree in (one, two))] for key in keys]
    return f"Configuration: keys that differ\n{table_text(Table(columns=('key', 'a', 'b'), rows=rows))}"


def _protocols(a: Member, b: Member) -> str:
    return "\n".join(
        f"They differ in {key} ({value}, {b.protocol[key]}): the differences below are not due to methods alone."
        for key, value in a.protocol.items()
        if value != b.protocol[key]
    )


def _results(a: Group, b: Group) -> str:
    rows = []
    for which in ("last", "best"):
        for split in ("val", "test"):
            for title, key, digits in METRICS:
                pair = [metric(group.finished[0], primary_head(group), which, key, split) for group in (a, b)]
                if any(value is not None for value in pair):
                    rows.append(_row(f"{which}, {split}: {title}", pair, f"{{:.{digits}f}}".format, NOTHING))
    heads = " and ".join(dict.fromkeys((primary_head(a), primary_head(b))))
    title = f"Results of the reported heads ({heads}); best: the best epoch on validation"
    return f"{title}\n{_side_by_side(rows)}"


def _cost(a: Group, b: Group) -> str:
    rows = []
    for title, (values, show) in COSTS.items():
        pair = [next(iter(values(group)), None) for group in (a, b)]
        rows.append(_row(title, pair, show, "not measured"))
    return f"Cost\n{_side_by_side(rows)}"


def _row(title: str, pair: Sequence[float | None], show: Callable[[float], str], without: str) -> list[str]:
    one, two = pair
    cells = [without if value is None else show(value) for value in pair]
    if one is None or two is None:
        return [title, *cells, NOTHING]
    difference = two - one
    sign = "-" if difference < 0 else "+"
    return [title, *cells, f"{sign}{show(abs(difference))}" if difference else show(0.0)]


def _side_by_side(rows: Sequence[Sequence[str]]) -> str:
    return table_text(Table(columns=("", "a", "b", "b - a"), rows=rows))


def _agreement(a: Group, b: Group) -> str:
    stored = [(group, read_predictions(group.finished[0].folder)) for group in (a, b)]
    lacking = [group.label for group, found in stored if found is None]
    if lacking:
        return f"Predictions on the test set: not available, {' and '.join(lacking)} stored none."
    one, two = (found.heads.get(primary_head(group), {}).get("test") for group, found in stored if found is not None)
    labels, others = (found.labels.get("test") for _, found in stored if found is not None)
    if one is None or two is None or labels is None or others is None:
        return "Predictions on the test set: not available, a run stored none for it."
    if not np.array_equal(labels, others):
        return "Predictions on the test set: not compared, the runs were tested on different images."
    both, only_a, only_b = correct(one.classes, two.classes, labels)
    return (
        f"Predictions of the reported heads on the {len(labels)} images of the test set, last epoch\n"
        f"the same class: {agreement(one.classes, two.classes):.2f} %\n"
        f"correct: both {both}, a alone {only_a}, b alone {only_b}, neither {len(labels) - both - only_a - only_b}\n"
        f"McNemar's exact test of a alone against b alone: {probability(mcnemar(only_a, only_b))} "
        "(tests the sampling of images, not of seeds)"
    )
