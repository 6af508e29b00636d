"""What `kdschemes study report` prints: the main numbers, the verdict, warnings, unfinished runs."""

from __future__ import annotations

from kdschemes.report.build import Report
from kdschemes.report.document import Table
from kdschemes.report.published import TITLE
from kdschemes.tracking.tables import text_table

COLUMNS = 5
"""Number of columns of the results table that are printed, from the left; the pages have all of them."""

MOST_MISSING = 10
"""Maximum number of unfinished runs printed with their reasons; if there are more, only their number is printed."""


def terminal(report: Report) -> str:
    """Return the text, as wide as the terminal; tables fold if necessary."""
    parts = [report.title + (f": {report.question}" if report.question else "")]
    for section in report.sections:
        if section.title == TITLE:
            parts += [f"{_plain(table.caption)}\n{table_text(table)}" for table in section.tables]
        if section.title == "Results":
            parts.append(table_text(section.tables[0], COLUMNS))
        if section.title == "Not finished" and len(section.tables[0].rows) <= MOST_MISSING:
            parts.append(table_text(section.tables[0]))
    parts.append(_plain("\n".join([*report.summary, *report.warnings])))
    return "\n\n".join(part for part in parts if part)


def _plain(text: str) -> str:
    return text.replace("**", "").replace("`", "")


def table_text(table: Table, columns_shown: int | None = None) -> str:
    """Return a table, or its first columns, as aligned text."""
    columns = list(table.columns)[:columns_shown]
    return text_table(columns, [row[: len(columns)] for row in table.rows], left=columns[:1])
