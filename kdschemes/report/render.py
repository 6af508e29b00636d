"""Charts as Vega-Lite specifications and as PNGs."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import altair as alt
import vl_convert

from kdschemes.printable import printable
from kdschemes.report.document import Chart
from kdschemes.report.style import CONFIG, PALETTES, PNG_FONT, resolved

VEGA_LITE = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
"""The version of Vega-Lite that Altair writes."""

WIDTH = 720
"""Width in pixels of a full-width chart in a PNG, before scaling."""

SCALE = 2


def specs(charts: Iterable[Chart]) -> dict[str, Any]:
    """Return the Vega-Lite specifications of charts by name, without a theme."""
    found = {}
    with alt.theme.enable("none"):
        for chart in charts:
            tree = _seen(chart.spec.to_dict())
            tree.pop("$schema", None)
            assert chart.name not in found, f"two charts are named {chart.name}"
            found[chart.name] = tree
    return found


def _seen(tree: Any) -> Any:
    """Return a specification whose texts can be drawn: a control character ends the program that draws them."""
    if isinstance(tree, Mapping):
        return {key: _seen(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_seen(value) for value in tree]
    return printable(tree, lines=True) if isinstance(tree, str) else tree


def png(spec: dict[str, Any]) -> bytes:
    """Return a chart as PNG at twice the resolution, on the light background."""
    tree = copy.deepcopy(spec)
    if tree.get("width") == "container":
        tree["width"] = WIDTH
    config = resolved(CONFIG) | {"background": PALETTES["light"]["paper"], "font": PNG_FONT, "padding": 16}
    data: bytes = vl_convert.vegalite_to_png(resolved(tree), vl_version=VEGA_LITE, scale=SCALE, config=config)
    return data
