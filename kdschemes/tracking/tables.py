"""The tables printed at the end of a run."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from io import StringIO
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdschemes.printable import printable
from kdschemes.storage.results import reported, worse_teacher

WIDTH = 160
"""Width of a printed table without a terminal."""

MEASURES = (
    ("balanced %", "balanced_accuracy", 2),
    ("micro F1 %", "micro_f1", 2),
    ("macro F1 %", "macro_f1", 2),
    ("NLL", "nll", 4),
    ("ECE %", "ece", 2),
)
"""Rows of the tables, besides accuracy, whose split is named: title, metric, digits."""

UNITS = ((1e15, " P"), (1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k"))

OPTIONAL = ("balanced_accuracy", "micro_f1", "macro_f1", "agreement", "kl")
"""Metrics that not all results have: those of one label per image or of several, of a teacher, or of newer results."""


def results_table(
    results: Mapping[str, Any], baselines: Sequence[Mapping[str, Any]] = (), missing: Sequence[str] = ()
) -> str:
    """Return the content of a `results.json` as plain text: one table for the last epoch, one for the best.

    The reported heads of `baselines`, other results, get rows of their own; `missing` are the commands that train those
    that do not exist yet. A teacher that is worse than its student is warned of.

    Each has one column per head, the reported head first, then the teacher, and as many columns side by side as fit; if
    the last epoch is the best one, there is one table for both. NLL, ECE, agreement and KL are those of the test set,
    or of the validation split if no test set was evaluated, as the rows say. A network with exits gets a third table:
    cost and accuracy of early exit.
    """
    primary_head = results["primary_head"]
    teacher = results.get("teacher")
    names = sorted(results["heads"], key=lambda name: (name == teacher, name != primary_head))
    parts = [_headline(results)]
    tables = [("last", "Last epoch"), ("best", "Best epoch on the validation split")]
    last, best = (results["heads"][primary_head].get(when) for when, _ in tables)
    if last and best and last["epoch"] == best["epoch"]:
        tables = [("last", "Last epoch, which is the best on the validation split too")]
    for when, title in tables:
        found = {name: results["heads"][name][when] for name in names if results["heads"][name].get(when)}
        if (results.get("mean_over_peers") or {}).get(when):
            found["mean over peers"] = results["mean_over_peers"][when]
        if found:
            costs = dict(results.get("cost", {}))
            for other in baselines:
                name, head = f"baseline: {other['method']}", other["primary_head"]
                if other["heads"][head].get(when):
                    costs[name] = other.get("cost", {}).get(head, {}) | {"latency_ms": None}  # of another time
                    found[name] = other["heads"][head][when]
            parts.append(f"{title}\n{_accuracy(found, costs, primary_head, teacher)}")
    if results.get("early_exit"):
        parts.append(f"Early exit on the test set, last epoch\n{_early_exit(results['early_exit'])}")
    if warning := _weak_teacher(results, baselines):
        parts.append(warning)
    parts += [f"its baseline, not trained yet: {command}" for command in missing]
    return "\n\n".join(parts) + "\n"


def _weak_teacher(results: Mapping[str, Any], baselines: Sequence[Mapping[str, Any]]) -> str | None:
    """Return a warning of a teacher that is worse than its student, alone if that is known."""
    alone = next((other for other in baselines if other["method"] == "ce"), None)
    for split in ("val", "test"):
        teacher = reported(results, split, results["teacher"]) if results.get("teacher") else None
        student = reported(alone or results, split)
        if teacher is not None and student is not None:
            why = worse_teacher(teacher, student, results["samples"][split], alone=alone is not None)
            return f"warning: the teacher {why}" if why else None
    return None


def _early_exit(found: Mapping[str, Any]) -> str:
    """Return the table of all exits, of the network without exits, and of the named budgets, or why there are none."""
    budgets = found["budgets"] or {}
    shares = f"left at {' / '.join(name.rpartition('/')[2] for name in found['exits'])} %"
    titles = ["prediction", "MACs", "latency ms", "test top-1 %", *([shares] if budgets else [])]
    entries = [*found["exits"].items(), ("without exits", found["static"])]
    entries += [(f"budget {name}", budget) for name, budget in budgets.items()]
    rows = []
    for name, entry in entries:
        cells = [name, count_text(entry["macs"]), _number(entry.get("latency_ms"), 2), _number(entry["top1"], 2)]
        if budgets:
            cells.append(" / ".join(_number(value, 1) for value in entry.get("shares", {}).values()) or "-")
        rows.append(cells)
    table = text_table(titles, rows, left=("prediction",))
    return "\n".join([table, *([found["note"]] if "note" in found else [])])


def _headline(results: Mapping[str, Any]) -> str:
    words = [str(results[key]) for key in ("scheme", "method", "data") if key in results]
    words += [f"{key} {results[key]}" for key in ("seed", "epochs", "processes") if key in results]
    if "epochs_planned" in results:
        words.append(f"stopped early (of {results['epochs_planned']} epochs)")
    if "resumed_from" in results:
        words.append(f"resumed from {results['resumed_from']}")
    if "wall_seconds" in results:
        words.append(f"{results['wall_seconds']:.0f} s")
    if "images_per_second" in results:
        words.append(f"{results['images_per_second']:.0f} images/s")
    return f"{results['run']}\n{', '.join(words)}"


def _accuracy(found: Mapping[str, Any], cost: Mapping[str, Any], primary_head: str, teacher: str | None = None) -> str:
    """Return a table with a column per head, or several below each other."""
    split = "test" if any(entry.get("test") for entry in found.values()) else "val"
    measured = {(one, key) for entry in found.values() for one in ("val", "test") for key in entry.get(one) or {}}
    main = (("mAP %", "map"),) if (split, "map") in measured else (("top-1 %", "top1"), ("top-5 %", "top5"))
    lines = [(f"{one} {title}", one, key, 2) for one in ("val", "test") for title, key in main]
    lines += [(f"{split} {title}", split, key, digits) for title, key, digits in MEASURES]
    lines += [("agreement %", split, "agreement", 2), ("KL(teacher)", split, "kl", 4)]
    shown = [line for line in lines if line[2] not in OPTIONAL or line[1:3] in measured]
    columns = {}
    for name, entry in found.items():
        column = {"epoch": "-" if name == teacher else str(entry["epoch"])}
        column |= {title: _number((entry.get(one) or {}).get(key), digits) for title, one, key, digits in shown}
        of_head = cost.get(name, {})
        column |= {title: count_text(of_head.get(key)) for title, key in (("params", "parameters"), ("MACs", "macs"))}
        columns[f"{name} (reported)" if name == primary_head else name] = column | {
            "latency ms": _number(of_head.get("latency_ms"), 2)
        }
    titles = list(next(iter(columns.values())))
    sizes = [max(len(head), *map(len, column.values())) + len(" | ") for head, column in columns.items()]
    room = _width(WIDTH) - max(map(len, titles)) - len("|  |")
    blocks: list[list[str]] = [[]]
    used = 0
    for head, size in zip(columns, sizes, strict=True):
        if blocks[-1] and used + size > room:
            blocks.append([])
            used = 0
        blocks[-1].append(head)
        used += size
    return "\n\n".join(
        text_table(
            ["head", *block], [[title, *(columns[head][title] for head in block)] for title in titles], left=("head",)
        )
        for block in blocks
    )


def _number(value: float | str | None, digits: int) -> str:
    return "-" if value is None else f"{float(value):.{digits}f}"


def count_text(value: float | int | None) -> str:
    """Return a count with two decimals and its unit, 3.27 M; "-" if it is unknown."""
    if value is None:
        return "-"
    for size, unit in UNITS:
        if value >= size:
            return f"{value / size:.2f}{unit}"
    return f"{value:.0f}"


def text_table(
    titles: Sequence[str], rows: Iterable[Sequence[str]], *, left: Collection[str], width: int = WIDTH
) -> str:
    """Return a table as plain text, as wide as the terminal, or `width` columns if there is none.

    Columns titled as in `left` are aligned left, all others right.
    """
    table = Table(box=box.MARKDOWN)
    for title in titles:
        table.add_column(Text(printable(title)), justify="left" if title in left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    text = StringIO()
    Console(file=text, width=_width(width), force_terminal=False, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines() if line.strip())


def _width(without_terminal: int) -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else without_terminal
