"""The tables of a report: accuracy and calibration, cost, other heads, the shared protocol, unfinished runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence

from kdschemes.report.document import Table
from kdschemes.report.formatting import (
    COSTS,
    NOTHING,
    each,
    heads,
    listed,
    mean_of,
    mean_std,
    name,
    primary_head,
    seeds,
    shared_teacher,
    spread,
)
from kdschemes.report.groups import Group

METRICS = (
    ("test top-1 %, last", "last", "top1", 2),
    ("test top-1 %, best on validation", "best", "top1", 2),
    ("NLL, last", "last", "nll", 4),
    ("ECE %, last", "last", "ece", 2),
    ("agreement with teacher %", "last", "agreement", 2),
    ("KL from teacher", "last", "kl", 4),
)
"""Title, epoch, metric and digits of the columns averaged over seeds."""

FIRST = 2
"""Number of metrics that come before head and seeds, so that a phone shows them first."""

RESULTS = (
    "run",
    *(title for title, *_ in METRICS[:FIRST]),
    "head",
    "seeds",
    *(title for title, *_ in METRICS[FIRST:]),
)

OPTIONAL = ("agreement with teacher %", "KL from teacher")
"""Columns that are left out if no run has a teacher."""

MEASURED = {"training s": 1, "memory MB": 0}
"""Costs averaged over seeds, with their digits; the others are counts, which should be the same for all seeds."""

MEAN_STD = "Mean ± sample std over the listed seeds, on the test set."


def results_table(groups: Sequence[Group]) -> Table:
    """Return the table of the reported heads of groups with finished runs."""
    rows = [_metrics(group, primary_head(group)) for group in groups]
    return _without_empty(RESULTS, rows, OPTIONAL, f"Reported heads. {MEAN_STD}")


def heads_table(groups: Sequence[Group]) -> Table | None:
    """Return the table of all other heads, identical ones (such as teachers) in one row; None if there are none."""
    merged: dict[tuple[str, ...], list[str]] = {}
    for group in groups:
        for head in heads(group):
            if head != primary_head(group):
                run, *cells = _metrics(group, head)
                merged.setdefault(tuple(cells), []).append(run)
    rows = [[_named(runs), *cells] for cells, runs in merged.items()]
    return _without_empty(RESULTS, rows, OPTIONAL, MEAN_STD) if rows else None


def cost_table(groups: Sequence[Group]) -> Table:
    """Return the inference cost of the reported heads and the cost of their training."""
    rows = [[name(group), *(_cost(group, title) for title in COSTS)] for group in groups]
    lacking = [title for index, title in enumerate(COSTS, 1) if all(row[index] == NOTHING for row in rows)]
    caption = (
        "At test time, for the reported head: parameters, multiply-accumulates per image. Latencies are not shown: "
        "each was measured in its own run, whatever else the machine did. For training: multiply-accumulates of all "
        "steps, including frozen teachers' forward passes but not those for training the teachers; seconds; peak "
        "memory of the process."
    )
    if lacking:
        caption += f" Not measured in these runs: {', '.join(lacking)}."
    if any(value > 1 for group in groups for value in each(group, "pack_size")):
        caption += (
            " Some runs were trained in one process (a pack): their seconds are an equal share of the pack's, their "
            "memory is that of the whole pack."
        )
    return _without_empty(("run", *COSTS), rows, COSTS, caption)


def protocol(groups: Sequence[Group]) -> tuple[str, list[str]]:
    """Return a sentence on what all finished runs share, and a warning for each difference."""
    own = [group for group in groups if not group.earlier] or list(groups)
    protocols = {group.label: group.finished[0].protocol for group in own}
    first = next(iter(protocols.values()))
    shared, warnings = [], []
    for key in first:
        labels: dict[str, list[str]] = {}
        for label, found in protocols.items():
            labels.setdefault(str(found.get(key)), []).append(label)
        if len(labels) == 1:
            shared.append(f"{key} {first[key]}")
        else:
            values = "; ".join(f"{value}: {_named(names)}" for value, names in labels.items())
            warnings.append(f"**The rows differ in {key}** ({values}): differences are not due to methods alone.")
    results = [result for group in own for result in group.results]
    for library in ("kdschemes", "torch"):
        versions = sorted({str(result["versions"].get(library)) for result in results})
        if len(versions) == 1:
            shared.append(f"{library} {versions[0]}")
        else:
            warnings.append(f"**The runs were made with several versions of {library}**: {', '.join(versions)}.")
    if len(made := commits(own)) == 1:
        shared.append(f"commit {made[0]}")
    elif made:
        warnings.append(f"**The runs were made by several commits**: {', '.join(made)}.")
    return f"Protocol of all rows: {', '.join(shared)}.", warnings


def weak_teachers(groups: Sequence[Group]) -> list[str]:
    """Return a warning of teachers that are worse than their students alone, or than their students.

    The student alone is the cross-entropy run of the same network with the same protocol, where there is one. Groups
    with the same numbers share a warning.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for group in (group for group in groups if group.results[0].get("teacher")):
        alone = next((other for other in groups if _trains_alone(other, group)), None)
        teacher = spread(group, str(group.results[0]["teacher"]), "last", "top1")
        student = spread(alone or group, primary_head(alone or group), "last", "top1")
        if teacher and student and mean_of(teacher) < mean_of(student):
            whom = f"its student alone ({alone.label})" if alone else "its own student"
            numbers = f"{mean_std(teacher, 2)} against {mean_std(student, 2)} % on the test set"
            found[f"is worse than {whom}**: {numbers}; there is little to learn from it."].append(group.label)
    return [f"**The teacher of {listed(labels)} {why}" for why, labels in found.items()]


def _trains_alone(group: Group, taught: Group) -> bool:
    """Whether a group trains the student of another, on the same images, by cross-entropy alone."""
    one, other = group.finished[0], taught.finished[0]
    same = all(one.config.get(key) == other.config.get(key) for key in ("model", "data"))
    return same and one.config.get("scheme", {}).get("method") == "ce" and one.protocol == other.protocol


def missing_table(groups: Sequence[Group]) -> Table | None:
    """Return the runs that are not finished, and why; None if all are."""
    rows = [
        [row.entry.label, row.state, f"{row.done:.3g} of {row.entry.epochs}", row.reason or NOTHING]
        for row in (member.row for group in groups for member in group.unfinished)
    ]
    caption = "Runs without results: their progress and why they stopped."
    return Table(columns=("run", "state", "epochs", "reason"), rows=rows, caption=caption) if rows else None


def code_table(groups: Sequence[Group]) -> Table | None:
    """Return the commit and the command of each finished run; None if no run has recorded them."""
    rows = []
    for member in (member for group in groups for member in group.finished):
        code = (member.results or {}).get("code") or {}
        rows.append([member.row.entry.label, str(code.get("commit", NOTHING)), str(code.get("command", NOTHING))])
    caption = "The code that trained each run: the commit of its checkout, and the shortest command of the same run."
    return (
        Table(columns=("run", "commit", "command"), rows=rows, caption=caption)
        if any(r[2] != NOTHING for r in rows)
        else None
    )


def commits(groups: Sequence[Group]) -> list[str]:
    """Return the commits that finished runs have recorded, each once."""
    found = [(result.get("code") or {}).get("commit") for group in groups for result in group.results]
    return sorted({str(commit) for commit in found if commit is not None})


def _metrics(group: Group, head: str) -> list[str]:
    cells = [mean_std(spread(group, head, which, key), digits) for _, which, key, digits in METRICS]
    trained = "one for all seeds" if shared_teacher(group, head) else seeds(group)
    return [name(group), *cells[:FIRST], head, trained, *cells[FIRST:]]


def _cost(group: Group, title: str) -> str:
    values, show = COSTS[title]
    return mean_std(values(group), MEASURED[title]) if title in MEASURED else _same(values(group), show)


def _same(values: Sequence[float], show: Callable[[float], str]) -> str:
    """Return the value that all runs of a group share, or the mean and range of values that differ."""
    if not values:
        return NOTHING
    if min(values) == max(values):
        return show(values[0])
    return f"{show(mean_of(values))} ({show(min(values))} to {show(max(values))})"


def _without_empty(
    columns: Sequence[str], rows: Sequence[Sequence[str]], optional: Collection[str], caption: str
) -> Table:
    kept = [i for i, title in enumerate(columns) if title not in optional or any(row[i] != NOTHING for row in rows)]
    return Table(columns=[columns[i] for i in kept], rows=[[row[i] for i in kept] for row in rows], caption=caption)


def _named(labels: Sequence[str]) -> str:
    return ", ".join(labels) if len(labels) < 4 else f"{len(labels)} rows"
