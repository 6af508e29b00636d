"""The numbers of a report for other programs: CSV with a row for each head of each run, and JSON of everything."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from kdschemes.report.formatting import MEAN_OVER_PEERS, heads
from kdschemes.report.groups import Group, Member
from kdschemes.report.significance import Comparison
from kdschemes.storage.results import plain

TOP_LEVEL = ("epochs", "train_seconds", "peak_memory_bytes", "train_macs_per_image", "pack_size", "device", "precision")
"""Keys of `results.json` that are columns under their own names."""


def run_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Return a row for each evaluated head of each finished run, and one for each run that is not finished.

    Metrics are `test_top1_last`, `val_nll_best`, ...: split, metric, epoch.
    """
    rows: list[dict[str, Any]] = []
    for group in groups:
        for member in group.members:
            entry = member.row.entry
            about = {"run": group.label, "variant": entry.variant, **entry.grid, "seed": entry.seed}
            about |= {"teaches": group.earlier, "state": member.row.state, "folder": member.folder.name}
            if member.results is None:
                rows.append(about | {"reason": member.row.reason})
            else:
                rows += [about | _of_head(member, head) for head in heads(group)]
    return rows


def comparison_rows(found: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Return the comparisons as numbers: differences and intervals in points of test top-1."""
    return [
        {"run": each.group.label, "against": each.against.label, "planned": each.planned, "seeds": each.paired.n}
        | {"difference": each.paired.mean_difference, "low": each.paired.low, "high": each.paired.high}
        | {"p": each.p, "verdict": each.verdict, "differs": list(each.differs)}
        for each in found
    ]


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as CSV with all their keys as columns; what a row lacks is empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def json_text(tree: dict[str, Any]) -> str:
    """Return JSON; numbers that it cannot represent are the strings "nan", "inf" and "-inf", as in `results.json`."""
    return json.dumps(plain(tree), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _of_head(member: Member, head: str) -> dict[str, Any]:
    results = member.results or {}
    found = results["mean_over_peers"] if head == MEAN_OVER_PEERS else results["heads"].get(head, {})
    row: dict[str, Any] = {"head": head, "reported": head == results["primary_head"]}
    for which in ("last", "best"):
        by_split = found.get(which) or {}
        row |= {f"epoch_{which}": by_split.get("epoch")}
        for split in ("val", "test"):
            row |= {f"{split}_{key}_{which}": value for key, value in (by_split.get(split) or {}).items()}
    costs = (results.get("cost") or {}).get(head, {})
    row |= {key: costs.get(key) for key in ("parameters", "macs")} | {key: results.get(key) for key in TOP_LEVEL}
    return row | (results.get("code") or {})
