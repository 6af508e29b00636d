"""A report as a page of Markdown, with its charts as image files next to it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from kdschemes.report.build import Report
from kdschemes.report.document import Section, Table


def markdown(report: Report, pictures: Mapping[str, str]) -> str:
    """Return the page. `pictures` holds the file name of each chart by its name."""
    parts = [f"# {_plain(report.title)}", *([_plain(report.question)] if report.question else [])]
    if report.summary:
        parts.append("\n".join(f"- {_plain(line)}" for line in report.summary))
    parts += [_plain(warning) for warning in report.warnings]
    parts += [_section(section, pictures) for section in report.sections]
    return "\n\n".join(parts) + "\n"


def table_lines(table: Table) -> list[str]:
    """Return the lines of a table."""
    rows = [table.columns, ["---"] * len(table.columns), *table.rows]
    return ["| " + " | ".join(_plain(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]


def _section(section: Section, pictures: Mapping[str, str]) -> str:
    parts = [f"## {_plain(section.title)}", *([_plain(section.text)] if section.text else [])]
    for table in section.tables:
        parts += ["\n".join(table_lines(table)), *([_plain(table.caption)] if table.caption else [])]
    for chart in section.charts:
        title = chart.name.replace("_", " ")
        parts += [f"![{title}]({pictures[chart.name]})", *([_plain(chart.caption)] if chart.caption else [])]
    return "\n\n".join(parts)


def _plain(text: str) -> str:
    """Return text in which nothing that comes from a run starts an HTML tag or a table row."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text).replace("\r", " ")
