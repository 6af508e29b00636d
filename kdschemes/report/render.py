"""Charts as Vega-Lite specifications and as PNGs."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import altair as alt
import vl_convert

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
            tree = chart.spec.to_dict()
            tree.pop("$schema", None)
            assert chart.name not in found, f"two charts are named {chart.name}"
            found[chart.name] = tree
    return found


def png(spec: dict[str, Any]) -> bytes:
    """Return a chart as PNG at twice the resolution, on the light background."""
    tree = copy.deepcopy(spec)
    if tree.get("width") == "container":
        tree["width"] = WIDTH
    config = resolved(CONFIG) | {"background": PALETTES["light"]["paper"], "font": PNG_FONT, "padding": 16}
    data: bytes = vl_convert.vegalite_to_png(resolved(tree), vl_version=VEGA_LITE, scale=SCALE, config=config)
    return data
