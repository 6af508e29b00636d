"""What `kdschemes report` prints: the main numbers, the verdict, warnings, what is missing."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table as Shown
from rich.text import Text

from kdschemes.report.build import Report
from kdschemes.report.section import Table
from kdschemes.results import render

RESULTS, COMPARED = 5, 5
"""Columns of the tables of results and of comparisons that are printed, from the left; the pages have all of them."""


def terminal(report: Report) -> str:
    """Return the text: as wide as the terminal, whose tables fold where they have to."""
    parts = [report.title + (f": {report.question}" if report.question else "")]
    for section in report.sections:
        if section.title == "Results":
            parts.append(table_text(section.tables[0], ("run", "head", "seeds", "last", "best on validation")))
    parts.append("\n".join([*report.summary, *report.warnings]).replace("**", ""))
    return "\n\n".join(part for part in parts if part)


def table_text(table: Table, titles: Sequence[str] = ()) -> str:
    """Return a table as aligned text; `titles` are those of its first columns, which alone are shown, else all."""
    shown = Shown(box=box.MARKDOWN)
    columns = list(titles or table.columns)
    for index, title in enumerate(columns):
        shown.add_column(title, justify="left" if index == 0 else "right", overflow="fold")
    for row in table.rows:
        shown.add_row(*map(Text, row[: len(columns)]))
    return render(shown)
