"""The parts of a report, independent of the page format: sections of text, tables and charts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import altair as alt


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table. Each row has a cell for each column, as plain text; the first column names the row."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart with its data embedded. `name` is the stem of its PNG and unique in a report.

    A single view, or layers of one, of the width "container" follows the page. Colors that are not named are those of
    `report.style`, which are visible on light and dark backgrounds; explicit colors come from there too.
    """

    name: str
    spec: alt.TopLevelMixin
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A titled part of a report: paragraphs, then tables, then a list of `items`, then charts.

    Paragraphs of `text` are separated by an empty line; `**bold**` and `` `code` `` are the only markup, also in items.
    """

    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    items: Sequence[str] = ()
    charts: Sequence[Chart] = ()
