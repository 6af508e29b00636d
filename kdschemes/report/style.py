"""The look of charts. Colors are names; the page resolves them in light and dark mode, `resolved` does so for PNGs.

A chart that names no color at all gets these by Vega-Lite's defaults; marks of the style "reference" are thin dashes.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable
from typing import Any

import numpy as np

COLORS = {
    "paper": ("#ffffff", "#14171b"),
    "panel": ("#f5f6f7", "#1d2126"),
    "ink": ("#1c2026", "#e8eaed"),
    "muted": ("#5b636d", "#a2abb5"),
    "rule": ("#d5d9de", "#3b424a"),
    "grid": ("#e9ecef", "#262b31"),
    "link": ("#0b5c9e", "#7ab8f0"),
    "series-1": ("#0072b2", "#4c9be0"),
    "series-2": ("#d55e00", "#f58a4b"),
    "series-3": ("#00875f", "#2fbf95"),
    "series-4": ("#9b4f96", "#d08fcb"),
    "series-5": ("#a87900", "#e0b040"),
    "series-6": ("#3d97cc", "#a5dcfb"),
    "series-7": ("#7f4f24", "#c79a6b"),
}
"""Light and dark color by name: Wong's palette, changed where the contrast with the background was too low."""

PALETTES = {theme: {name: pair[i] for name, pair in COLORS.items()} for i, theme in enumerate(("light", "dark"))}
"""Colors by theme and name."""


def color(name: str) -> str:
    """Return the placeholder for a color of `COLORS` in a chart."""
    assert name in COLORS, name
    return f"var(--{name})"


INK, MUTED, PAPER, PANEL = color("ink"), color("muted"), color("paper"), color("panel")

SERIES = tuple(color(f"series-{number}") for number in range(1, 8))

DASHES = ([1, 0], [6, 3], [2, 2])
"""Line dashes, one for each pass through the colors."""

STOPS = ("#4667cf", "#8f55bd", "#c74c86", "#d8683a", "#b98312")
"""Color scale of increasing numbers; visible on light and dark backgrounds."""

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'

PNG_FONT = "Liberation Sans, Arial, Helvetica, sans-serif"

AXIS_LINE, LEGEND_LINE = 24, 42
"""Characters in a line of a label, what a phone shows beside and below a chart."""

CONFIG: dict[str, Any] = {
    "aria": False,
    "background": "transparent",
    "font": FONT,
    "padding": 4,
    "view": {"stroke": None, "continuousWidth": 720, "continuousHeight": 320},
    "axis": {
        "domainColor": color("rule"),
        "gridColor": color("grid"),
        "tickColor": color("rule"),
        "labelColor": MUTED,
        "titleColor": INK,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelPadding": 6,
        "titlePadding": 10,
        "labelLimit": 300,
        "tickSize": 4,
    },
    "legend": {
        "orient": "bottom",
        "labelColor": INK,
        "titleColor": MUTED,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelLimit": 340,
        "columns": 3,
        "rowPadding": 4,
        "columnPadding": 18,
        "symbolStrokeWidth": 2.2,
        "symbolOpacity": 1,
        "symbolBaseFillColor": MUTED,
        "symbolBaseStrokeColor": MUTED,
        "layout": {"bottom": {"anchor": "start", "direction": "vertical", "margin": 6}},
    },
    "header": {"labelColor": INK, "titleColor": MUTED, "labelFontSize": 12, "titleFontSize": 12},
    "title": {"color": INK, "subtitleColor": MUTED, "fontSize": 13, "fontWeight": 600, "anchor": "start"},
    "line": {"strokeWidth": 2},
    "rule": {"color": MUTED},
    "text": {"color": INK, "fontSize": 12},
    "range": {"category": list(SERIES), "ordinal": list(STOPS), "ramp": list(STOPS), "heatmap": list(STOPS)},
    "style": {"reference": {"color": MUTED, "strokeDash": [4, 4], "strokeWidth": 1}},
}
"""Vega-Lite's defaults for all charts."""


def wrapped(labels: Iterable[str], line: int) -> tuple[str, int]:
    """Return the expression that breaks labels longer than a line at spaces, and the lines of the longest of them.

    `line` is in characters. It is for the `labelExpr` of an axis or a legend.
    """
    lines = {label: textwrap.wrap(label, line, break_long_words=False) or [label] for label in labels}
    return f"({json.dumps(lines)})[datum.label] || datum.label", max(map(len, lines.values()), default=1)


def resolved(tree: Any, theme: str = "light") -> Any:
    """Return a chart's specification with color names replaced by colors."""
    if isinstance(tree, dict):
        return {key: resolved(value, theme) for key, value in tree.items()}
    if isinstance(tree, list):
        return [resolved(value, theme) for value in tree]
    if isinstance(tree, str):
        return re.sub(r"var\(--([a-z0-9-]+)\)", lambda found: PALETTES[theme].get(found[1], found[0]), tree)
    return tree


def ramp(count: int) -> list[str]:
    """Return `count` colors for ordered numbers, evenly spaced over `STOPS`."""
    positions = np.linspace(0, len(STOPS) - 1, count)
    channels = zip(*(bytes.fromhex(stop.removeprefix("#")) for stop in STOPS), strict=True)
    mixed = [np.interp(positions, range(len(STOPS)), channel).round() for channel in channels]
    return ["#" + bytes(map(int, rgb)).hex() for rgb in zip(*mixed, strict=True)]
