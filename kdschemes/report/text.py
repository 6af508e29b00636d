"""The page of a report: tables of means and deviations over seeds, what differs, what is missing."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kdschemes.report.groups import Group

MEAN_OVER_PEERS = "mean over peers"
COLUMNS = (
    *("run", "head", "seeds", "test top-1 %, last", "test top-1 %, best on validation", "NLL, last", "ECE %, last"),
    *("parameters", "MACs", "train s"),
)
NUMBERS = (("last", "top1", 2), ("best", "top1", 2), ("last", "nll", 4), ("last", "ece", 2))
"""Epoch, metric and digits of the columns over seeds."""


def page(title: str, question: str, groups: Sequence[Group], notes: Iterable[str], picture: str | None) -> str:
    """Return the page as markdown. `picture` is the name of the file with the curves, beside the page."""
    finished = [group for group in groups if group.finished]
    parts = [f"# {title}", *([question] if question else [])]
    if finished:
        own = [_row(group, _reported(group)) for group in finished]
        others = [_row(group, head) for group in finished for head in _heads(group) if head != _reported(group)]
        parts.append(_table(own))
        parts.append("Mean ± sample deviation over the seeds that are listed, of the reported head on the test set.")
        parts += _protocols(finished)
        if others:
            parts += ["## Other heads", _table(others)]
    missing = [member.row for group in groups for member in group.members if member.results is None]
    if missing:
        lines = [
            f"- {row.entry.label}: {row.state}, {row.done:.3g} of {row.entry.epochs} epochs"
            + (f"; {row.reason}" if row.reason else "")
            for row in missing
        ]
        parts += ["## Not finished", "\n".join(lines)]
    if picture is not None:
        caption = "Mean over the seeds that finished, in a band from the least to the most; dotted: not finished."
        parts += ["## Validation", f"![validation curves]({picture})", caption]
    parts += list(notes)
    return "\n\n".join(parts) + "\n"


def spread(values: Sequence[float], digits: int) -> str:
    """Return the mean of values, with their sample deviation where there are several; "-" for none."""
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation}"


def _reported(group: Group) -> str:
    return str(_results(group)[0]["reported"])


def _results(group: Group) -> list[Mapping[str, Any]]:
    return [member.results for member in group.finished if member.results is not None]


def _heads(group: Group) -> list[str]:
    first = _results(group)[0]
    return [*first["heads"], *([MEAN_OVER_PEERS] if first.get("mean_over_peers") else [])]


def _row(group: Group, head: str) -> list[str]:
    results = _results(group)
    of = [result["mean_over_peers"] if head == MEAN_OVER_PEERS else result["heads"][head] for result in results]
    seeds = ", ".join(str(member.row.entry.seed) for member in group.finished)
    missing = len(group.members) - len(results)
    cost = results[0]["cost"].get(_reported(group) if head == MEAN_OVER_PEERS else head)
    cells = [f"{group.label} (teaches)" if group.earlier else group.label, head]
    cells.append(f"{seeds} ({missing} missing)" if missing else seeds)
    for which, key, digits in NUMBERS:
        found = [each[which]["test"][key] for each in of if each[which] and each[which]["test"]]
        cells.append(spread([float(value) for value in found], digits))
    cells += [f"{cost['parameters']:,}", f"{cost['macs'] / 1e6:.2f} M"] if cost else ["-", "-"]
    cells.append(spread([result["train_seconds"] for result in results], 1))
    return cells


def _table(rows: Iterable[Sequence[str]]) -> str:
    lines = [COLUMNS, ["---"] * len(COLUMNS), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _protocols(groups: Sequence[Group]) -> list[str]:
    """Return what all rows share, and a warning for what they do not."""
    own = [group for group in groups if not group.earlier] or list(groups)
    protocols = {group.label: group.finished[0].protocol for group in own}
    versions = {group.label: [result["versions"] for result in _results(group)] for group in own}
    first = next(iter(protocols.values()))
    shared, lines = [], []
    for key in first:
        labels: dict[str, list[str]] = {}
        for label, protocol in protocols.items():
            labels.setdefault(str(protocol.get(key)), []).append(label)
        if len(labels) == 1:
            shared.append(f"{key} {first[key]}")
        else:
            told = "; ".join(f"{value}: {_named(names)}" for value, names in labels.items())
            lines.append(f"**The rows differ in {key}** ({told}): they do not compare methods alone.")
    for library in ("kdschemes", "torch"):
        found = sorted({str(each.get(library)) for of in versions.values() for each in of})
        if len(found) == 1:
            shared.append(f"{library} {found[0]}")
        else:
            lines.append(f"**The runs were made with several versions of {library}**: {', '.join(found)}.")
    return [f"Protocol of all rows: {', '.join(shared)}.", *lines]


def _named(labels: Sequence[str]) -> str:
    return ", ".join(labels) if len(labels) < 4 else f"{len(labels)} rows"
