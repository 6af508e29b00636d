"""What `kdschemes study report` prints: the main numbers, the verdict, warnings, unfinished runs."""

from __future__ import annotations

from rich import box
from rich.table import Table as Shown
from rich.text import Text

from kdschemes.report.build import Report
from kdschemes.report.document import Table
from kdschemes.tracking.tables import render

COLUMNS = 5
"""Number of columns of the results table that are printed, from the left; the pages have all of them."""

MOST_MISSING = 10
"""Maximum number of unfinished runs printed with their reasons; if there are more, only their number is printed."""


def terminal(report: Report) -> str:
    """Return the text, as wide as the terminal; tables fold if necessary."""
    parts = [report.title + (f": {report.question}" if report.question else "")]
    for section in report.sections:
        if section.title == "Results":
            parts.append(table_text(section.tables[0], COLUMNS))
        if section.title == "Not finished" and len(section.tables[0].rows) <= MOST_MISSING:
            parts.append(table_text(section.tables[0]))
    parts.append("\n".join([*report.summary, *report.warnings]).replace("**", ""))
    return "\n\n".join(part for part in parts if part)


def table_text(table: Table, columns_shown: int | None = None) -> str:
    """Return a table, or its first columns, as aligned text."""
    shown = Shown(box=box.MARKDOWN)
    columns = list(table.columns)[:columns_shown]
    for index, title in enumerate(columns):
        shown.add_column(title, justify="left" if index == 0 else "right", overflow="fold")
    for row in table.rows:
        shown.add_row(*map(Text, row[: len(columns)]))
    return render(shown)
