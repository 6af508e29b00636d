"""What a run with exits leaves of early exit: the numbers and their picture."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from kdschemes.curves import COLOURS
from kdschemes.files import write_whole
from kdschemes.results import write_json

SIZES = ((1e9, "10⁹"), (1e6, "10⁶"), (1e3, "10³"))


def write_early_exit(found: Mapping[str, Any], folder: Path) -> None:
    """Write `early_exit.json` and its picture `early_exit.png`.

    Raises:
        UserError: the folder cannot be written.
    """
    write_json(folder / "early_exit.json", found)
    figure = Figure(figsize=(13, 5.2), dpi=110, layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1))
    FigureCanvasAgg(figure)
    figure.suptitle(f"{folder.name}: early exit on the test set", fontsize=12)
    left, right = figure.subplots(1, 2)
    size, unit = next(((size, unit) for size, unit in SIZES if found["static"]["macs"] >= size), SIZES[-1])
    _draw_accuracy(left, found, size)
    _draw_shares(right, found, size)
    last = list(found["exits"].values())[-1]["macs"] / size
    left.set(xlim=(0, 1.12 * last), xlabel=f"expected MACs an image ({unit})")
    right.set_xlabel(f"expected MACs an image ({unit})")
    png = BytesIO()
    figure.savefig(png, format="png")
    write_whole(folder / "early_exit.png", png.getvalue())


def _draw_accuracy(axes: Axes, found: Mapping[str, Any], size: float) -> None:
    if found["curve"] is not None:
        points = sorted((one["macs"] / size, one["top1"]) for one in found["curve"])
        label = "budgeted: each at its first sure exit"
        axes.plot(*zip(*points, strict=True), color=COLOURS[0], marker="o", markersize=3.5, label=label)
    macs = [one["macs"] / size for one in found["exits"].values()]
    top1 = [one["top1"] for one in found["exits"].values()]
    label = "anytime: all at one exit"
    axes.plot(macs, top1, color=COLOURS[1], marker="s", markersize=7, linestyle=":", label=label)
    for name, x, y in zip(found["exits"], macs, top1, strict=True):
        axes.annotate(
            name.rpartition("/")[2],
            (x, y),
            xytext=(0, -8),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=9,
            color=COLOURS[1],
        )
    static = found["static"]
    label = "the network without exits"
    axes.plot(
        static["macs"] / size, static["top1"], color="black", marker="*", markersize=13, linestyle="", label=label
    )
    axes.set(title="Accuracy against cost", ylabel="top-1 (%)")
    axes.margins(y=0.15)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, fontsize=8, frameon=False)


def _draw_shares(axes: Axes, found: Mapping[str, Any], size: float) -> None:
    axes.set(title="Where samples leave, by budget", ylabel="share of samples (%)")
    if found["curve"] is None:
        axes.text(0.5, 0.5, "no validation split: no thresholds", transform=axes.transAxes, ha="center", color="0.4")
        return
    curve = sorted(found["curve"], key=lambda one: one["macs"])
    names = list(found["exits"])
    colours = [COLOURS[number % len(COLOURS)] for number in range(len(names))]
    macs = [one["macs"] / size for one in curve]
    layers = [[one["shares"][name] for one in curve] for name in names]
    labels = [name.rpartition("/")[2] for name in names]
    axes.stackplot(macs, layers, labels=labels, colors=colours, alpha=0.75, edgecolor="white", linewidth=0.8)
    axes.set_ylim(0, 100)
    if macs[-1] > macs[0]:
        axes.set_xlim(macs[0], macs[-1])
    for name, budget in found["budgets"].items():
        axes.axvline(budget["macs"] / size, color="black", linestyle=":", linewidth=1)
        axes.annotate(f" {name}", (budget["macs"] / size, 97), va="top", fontsize=9)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=6, fontsize=9, frameon=False)
