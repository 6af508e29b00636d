"""A report as a page of Markdown, with its charts as image files next to it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from urllib.parse import quote

from kdschemes.printable import printable
from kdschemes.report.build import Report
from kdschemes.report.document import Section, Table


def markdown(report: Report, pictures: Mapping[str, str], data: Sequence[str] = ()) -> str:
    """Return the page. `pictures` holds the file name of each chart by its name, `data` those of the numbers."""
    parts = [f"# {_text(report.title)}", *([_marked(report.question)] if report.question else [])]
    if report.summary:
        parts.append("\n".join(f"- {_marked(line)}" for line in report.summary))
    parts += [_marked(warning) for warning in report.warnings]
    parts += [_section(section, pictures) for section in report.sections]
    if data:
        parts.append(f"Numbers: {', '.join(f'[{name}]({quote(name)})' for name in data)}.")
    return "\n\n".join(parts) + "\n"


def table_lines(table: Table) -> list[str]:
    """Return the lines of a table."""
    head, *rows = (list(map(_text, row)) for row in (table.columns, *table.rows))
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


def _section(section: Section, pictures: Mapping[str, str]) -> str:
    parts = [f"## {_text(section.title)}", *([_marked(section.text)] if section.text else [])]
    for table in section.tables:
        parts += ["\n".join(table_lines(table)), *([_marked(table.caption)] if table.caption else [])]
    if section.items:
        parts.append("\n".join(f"- {_marked(item)}" for item in section.items))
    for chart in section.charts:
        title = chart.name.replace("_", " ")
        parts += [f"![{title}]({pictures[chart.name]})", *([_marked(chart.caption)] if chart.caption else [])]
    return "\n\n".join(parts)


def _text(text: str) -> str:
    """Return plain text, in one line, as Markdown: nothing in it is markup."""
    return _escaped(printable(text).strip())


def _marked(text: str) -> str:
    """Return text as Markdown: `**bold**`, code in backticks and empty lines between paragraphs are the only markup."""
    paragraphs = (paragraph.split("\n") for paragraph in text.split("\n\n") if paragraph.strip())
    return "\n\n".join("\n".join(map(_marked_line, lines)) for lines in paragraphs)


def _marked_line(text: str) -> str:
    words = re.split(r"(`[^`]+`|\*\*)", printable(text).strip())
    return "".join(word if number % 2 else _escaped(word, start=not number) for number, word in enumerate(words))


_ESCAPES = re.compile(
    r"""
    (?P<backslash>
        \\(?=[!-/:-@\[-`{-~])               # would take the next character's meaning
        | [`*~|]                            # code, emphasis, struck out, the next cell
        | (?<![^\W_])_ | _(?![^\W_])        # emphasis, but not within a word
        | \](?=[(\[:])                      # a link, an image, the target of one
        | (?<=http):(?=//) | (?<=https):(?=//) | (?<=www)\. | @   # what GitHub makes a link
    )
    | (?P<entity> <(?=[A-Za-z/!?]) | &(?=\#?\w+;) )
    """,
    re.VERBOSE | re.IGNORECASE,
)

_START = re.compile(
    r"""
    [0-9]{1,9}(?=[.)](?:\s|$))    # an item
    | (?=\#{1,6}(?:\s|$) | > | [+-](?:\s|$))  # a heading, a quotation, an item
    | (?=--|=+\s*$ | \[[ x]\])                # a rule, a heading, a task
    """,
    re.VERBOSE | re.IGNORECASE,
)


def _escaped(text: str, *, start: bool = False) -> str:
    """Return text without markup; at the `start` of a line also without a heading, a quotation, a rule or an item."""
    text = _ESCAPES.sub(lambda found: escape(found[0]) if found["entity"] else f"\\{found[0]}", text)
    if start and (found := _START.match(text)):
        text = f"{found[0]}\\{text[found.end() :]}"
    return text
