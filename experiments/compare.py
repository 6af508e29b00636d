"""Mean and deviation over seeds of the runs in a folder: `python -m experiments.compare runs --picture curves.png`."""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kdschemes.track import read_rows

Group = dict[int, Path]
"""The run of each seed."""


def read_groups(folder: Path) -> dict[str, Group]:
    """Return the finished runs below a folder by scheme, method and model, then by seed.

    Two runs of one name and seed (other options differ) stand apart, by the hash of their configuration.
    """
    found: dict[str, list[tuple[int, Path]]] = defaultdict(list)
    for path in sorted(folder.glob("*/results.json")):
        results = json.loads(path.read_text())
        name, _, _ = path.parent.name.rpartition("-seed")
        found[name].append((results["seed"], path.parent))
    groups: dict[str, Group] = {}
    for name, runs in found.items():
        for seed, path in runs:
            label = name
            while seed in groups.setdefault(label, {}):
                label = f"{name} ({path.name.rpartition('-')[2]})"
            groups[label][seed] = path
    return groups


def table(groups: Mapping[str, Group]) -> str:
    """Return a Markdown table: test top-1 of each head after the last and the best epoch, over seeds."""
    lines = [
        "| run | head | seeds | test top-1 %, last | test top-1 %, best on validation | NLL, last | ECE %, last "
        "| parameters | MACs | train s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for label, group in groups.items():
        results = [json.loads((path / "results.json").read_text()) for path in group.values()]
        for number, result in enumerate(results):
            if result.get("mean_over_peers"):
                results[number] = result | {
                    "heads": result["heads"] | {"mean over peers": result["mean_over_peers"]},
                    "cost": result["cost"] | {"mean over peers": result["cost"][result["reported"]]},
                }
        for head in results[0]["heads"]:
            cost = results[0]["cost"][head]
            cells = [label, head, ", ".join(map(str, group))]
            cells += [_spread(results, head, which, "top1", 2) for which in ("last", "best")]
            cells += [_spread(results, head, "last", key, digits) for key, digits in (("nll", 4), ("ece", 2))]
            cells += [f"{cost['parameters']:,}", f"{cost['macs'] / 1e6:.2f} M"]
            cells += [f"{statistics.mean(r['wall_seconds'] for r in results):.0f}"]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _spread(results: Sequence[Mapping[str, Any]], head: str, which: str, key: str, digits: int) -> str:
    values = [r["heads"][head][which]["test"][key] for r in results if r["heads"][head][which]]
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def draw(groups: Mapping[str, Group], path: Path) -> None:
    """Draw the validation top-1 of the reported head over epochs: the mean over seeds, a band from least to most."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    colours = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
    lowest = 100.0
    for (label, group), colour in zip(groups.items(), colours * 3, strict=False):
        curves = [_curve(run) for run in group.values()]
        seeds = "seed" if len(curves) == 1 else "seeds"
        epochs = sorted(set.intersection(*(set(curve) for curve in curves)))
        if not epochs:
            continue
        columns = [[curve[epoch] for curve in curves] for epoch in epochs]
        means = [statistics.mean(column) for column in columns]
        axes.plot(epochs, means, color=colour, label=f"{label} ({len(curves)} {seeds})", linewidth=1.8)
        axes.fill_between(epochs, list(map(min, columns)), list(map(max, columns)), color=colour, alpha=0.15)
        lowest = min(lowest, *means[len(means) // 3 :])
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation top-1 (%)")
    axes.set_ylim(max(0.0, lowest - 3.0), min(100.5, axes.get_ylim()[1]))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=150)


def _curve(run: Path) -> dict[int, float]:
    reported = json.loads((run / "results.json").read_text())["reported"]
    rows = read_rows(run / "metrics.jsonl")
    return {row["epoch"]: row[f"{reported}/top1"] for row in rows if row["kind"] == "eval" and row["split"] == "val"}


def main() -> None:
    """Read the command line, print the table and draw the picture."""
    parser = argparse.ArgumentParser(prog="python -m experiments.compare", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder that holds the runs' folders")
    parser.add_argument("--picture", type=Path, help="PNG to draw the validation curves into")
    options = parser.parse_args()
    groups = read_groups(options.folder)
    if not groups:
        raise SystemExit(f"no finished run in {options.folder}")
    print(table(groups))
    if options.picture:
        draw(groups, options.picture)


if __name__ == "__main__":
    main()
