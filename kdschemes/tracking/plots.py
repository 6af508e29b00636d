"""The plots of a run."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from io import BytesIO
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from kdschemes.storage.atomic import atomic_write
from kdschemes.storage.results import write_json
from kdschemes.tracking.metrics_log import read_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F6000")
"""Wong's palette, distinguishable with color blindness, its yellow darkened; black is reserved for the total loss."""

DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)))

STYLES = tuple({"color": color, "linestyle": dash} for dash, color in product(DASHES, COLORS))

TOTAL_STYLE = {"color": "black", "linewidth": 2.0}

MAX_POINTS = 250
"""A log with more training rows is averaged over windows of equal length."""

MAX_MARKERS = 40
"""A line with more points is drawn without markers."""

LEGEND = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.13), "frameon": False}

LEGEND_WIDTH = 90
"""Characters per line of a legend, handles included."""

SIZES = ((1e9, "10⁹"), (1e6, "10⁶"), (1e3, "10³"))
"""Units of multiply-accumulates."""

Line = tuple[list[float], list[float]]
"""Epochs, and the values at them."""


def can_draw() -> bool:
    """Return whether matplotlib is installed; without it there are no plots."""
    return find_spec("matplotlib") is not None


def draw_curves(metrics_path: Path, png_path: Path, title: str) -> None:
    """Draw a run's `metrics.jsonl` as a PNG of four panels over epochs.

    They show the training loss (the weighted total, and every term before its weight), the top-1 accuracy (or mAP) and
    the NLL of every head on the validation split, and the learning rate. A panel without data says so.

    Raises:
        UserError: the log can't be read, or the plot can't be written.
    """
    rows = read_rows(metrics_path)
    train = [row for row in rows if row["kind"] == "train"]
    val = [row for row in rows if row["kind"] == "eval" and row["split"] == "val"]
    figure = _figure(title, height=10.0)
    (losses, top1), (nll, rate) = figure.subplots(2, 2)

    _draw_losses(losses, train)
    if precision := _lines(val, "(.*)/map"):
        _draw(top1, precision, STYLES)
        top1.set(title="Mean average precision on the validation split", ylabel="mAP (%)")
    else:
        _draw(top1, _lines(val, "(.*)/top1"), STYLES)
        top1.set(title="Top-1 accuracy on the validation split", ylabel="top-1 (%)")
    _draw(nll, _lines(val, "(.*)/nll"), STYLES)
    nll.set(title="NLL on the validation split", ylabel="NLL (nats)")
    _draw(rate, _lines(train, "lr()"), STYLES)
    rate.set(title="Learning rate", ylabel="learning rate")
    last = max((float(row["epoch"]) for row in train + val), default=1.0)
    for axes in (losses, top1, nll, rate):
        axes.set(xlim=(0, 1.02 * last), xlabel="epoch")
        _style(axes)
    _save(figure, png_path)


def _draw_losses(axes: Axes, train: Sequence[Mapping[str, Any]]) -> None:
    width = max(1, math.ceil(len(train) / MAX_POINTS))
    terms = _lines(train, "loss/(.*)")
    terms = {name: _means(line, width) for name, line in sorted(terms.items(), key=lambda item: item[0] != "total")}
    lines = {"total, weighted" if name == "total" else name: line for name, line in terms.items()}
    _draw(axes, lines, (TOTAL_STYLE, *STYLES) if "total" in terms else STYLES)
    means = f" (means of {width} log lines)" if width > 1 else ""
    axes.set(title=f"Training loss and its terms, unweighted{means}", ylabel="loss")
    positive = [value for _, values in lines.values() for value in values if value > 0]
    if positive and max(positive) > 30 * min(positive):
        axes.set_yscale("log", nonpositive="mask")


def _lines(rows: Iterable[Mapping[str, Any]], keys: str) -> dict[str, Line]:
    """Return the values of all keys that match a pattern, by what its group matches."""
    lines: dict[str, Line] = {}
    for row in rows:
        for key, value in row.items():
            if (match := re.fullmatch(keys, key)) is not None:
                epochs, values = lines.setdefault(match[1], ([], []))
                epochs.append(float(row["epoch"]))
                values.append(value if math.isfinite(value) else math.nan)
    return lines


def _means(line: Line, width: int) -> Line:
    epochs, values = ([fmean(of[start : start + width]) for start in range(0, len(of), width)] for of in line)
    return epochs, values


def _draw(axes: Axes, lines: Mapping[str, Line], styles: Sequence[Mapping[str, Any]]) -> None:
    """Draw the lines, with a legend below the axes unless the only line has no name."""
    if not lines:
        _write_in_the_middle(axes, "nothing logged")
        axes.tick_params(labelleft=False)
    for i, (name, (epochs, values)) in enumerate(lines.items()):
        marker = "o" if len(epochs) <= MAX_MARKERS else ""
        style = {"linewidth": 1.4, **styles[i % len(styles)]}
        axes.plot(epochs, values, label=name, marker=marker, markersize=3.5, **style)
    if any(lines):
        columns = max(1, min(4, LEGEND_WIDTH // (max(map(len, lines)) + 8)))
        axes.legend(**LEGEND, ncols=columns, fontsize=8, handlelength=3)


def write_early_exit(found: Mapping[str, Any], folder: Path) -> None:
    """Write `early_exit.json` and, if it `can_draw`, its plot `early_exit.png`.

    Raises:
        UserError: the folder cannot be written.
    """
    write_json(folder / "early_exit.json", found)
    if not can_draw():
        return
    figure = _figure(f"{folder.name}: early exit on the test set", height=5.2)
    left, right = figure.subplots(1, 2)
    size, unit = next(((size, unit) for size, unit in SIZES if found["static"]["macs"] >= size), SIZES[-1])
    _draw_accuracy(left, found, size)
    _draw_shares(right, found, size)
    last = list(found["exits"].values())[-1]["macs"] / size
    left.set_xlim(0, 1.12 * last)
    for axes in (left, right):
        axes.set_xlabel(f"expected MACs per image ({unit})")
    _save(figure, folder / "early_exit.png")


def _draw_accuracy(axes: Axes, found: Mapping[str, Any], size: float) -> None:
    if found["curve"] is not None:
        points = sorted((one["macs"] / size, one["top1"]) for one in found["curve"])
        label = "budgeted: each at its first confident exit"
        axes.plot(*zip(*points, strict=True), color=COLORS[0], marker="o", markersize=3.5, label=label)
    macs = [one["macs"] / size for one in found["exits"].values()]
    top1 = [one["top1"] for one in found["exits"].values()]
    label = "anytime: all at one exit"
    axes.plot(macs, top1, color=COLORS[1], marker="s", markersize=7, linestyle=":", label=label)
    for name, x, y in zip(found["exits"], macs, top1, strict=True):
        exit = name.rpartition("/")[2]
        axes.annotate(
            exit, (x, y), (0, -8), textcoords="offset points", ha="center", va="top", fontsize=9, color=COLORS[1]
        )
    x, y = found["static"]["macs"] / size, found["static"]["top1"]
    label = "the network without exits"
    axes.plot(x, y, color="black", marker="*", markersize=13, linestyle="", label=label)
    axes.set(title="Accuracy against cost", ylabel="top-1 (%)")
    axes.margins(y=0.15)
    _style(axes)
    axes.legend(**LEGEND, ncols=3, fontsize=8)


def _draw_shares(axes: Axes, found: Mapping[str, Any], size: float) -> None:
    axes.set(title="Where samples exit, by budget", ylabel="share of samples (%)")
    if found["curve"] is None:
        _write_in_the_middle(axes, "no validation split: no thresholds")
        return
    curve = sorted(found["curve"], key=lambda one: one["macs"])
    names = list(found["exits"])
    colors = [COLORS[number % len(COLORS)] for number in range(len(names))]
    macs = [one["macs"] / size for one in curve]
    layers = [[one["shares"][name] for one in curve] for name in names]
    labels = [name.rpartition("/")[2] for name in names]
    axes.stackplot(macs, layers, labels=labels, colors=colors, alpha=0.75, edgecolor="white", linewidth=0.8)
    axes.set_ylim(0, 100)
    if macs[-1] > macs[0]:
        axes.set_xlim(macs[0], macs[-1])
    for name, budget in found["budgets"].items():
        axes.axvline(budget["macs"] / size, color="black", linestyle=":", linewidth=1)
        axes.annotate(f" {name}", (budget["macs"] / size, 97), va="top", fontsize=9)
    axes.legend(**LEGEND, ncols=6, fontsize=9)


def _figure(title: str, height: float) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(13, height), dpi=110, layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1))
    figure.suptitle(title, fontsize=12)
    return figure


def _style(axes: Axes) -> None:
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _write_in_the_middle(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", color="0.4")


def _save(figure: Figure, path: Path) -> None:
    png = BytesIO()
    figure.savefig(png, format="png")
    atomic_write(path, png.getvalue())
