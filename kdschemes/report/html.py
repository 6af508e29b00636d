"""A report as one self-contained HTML file, with its styles, charts and the library that draws them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from itertools import count
from typing import Any
from urllib.parse import quote

import vl_convert

from kdschemes import __version__
from kdschemes.printable import printable
from kdschemes.report.build import Report
from kdschemes.report.document import Chart, Section, Table
from kdschemes.report.render import VEGA_LITE
from kdschemes.report.style import CONFIG, FONT, PALETTES

POLICY = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data:"
"""What the page may load: nothing. Vega compiles its expressions, hence `unsafe-eval`."""

LONG = 40
"""Cells with more characters are sentences and get more room."""

NUMERIC = re.compile(r"[-+<≤]? ?[\d.,]+.*|-|nan|[-+]?inf")


def html(report: Report, specs: Mapping[str, Any], data: Sequence[str] = ()) -> str:
    """Return the page. `specs` holds the Vega-Lite specification of each chart by its name, `data` files beside it."""
    body = _Body(specs)
    sections = [body.section(section, f"part-{number}") for number, section in enumerate(report.sections, 1)]
    contents = "".join(
        f'<li><a href="#part-{number}">{_text(section.title)}</a></li>'
        for number, section in enumerate(report.sections, 1)
    )
    question = f'<p class="question">{_marked(report.question)}</p>' if report.question else ""
    summary = "".join(f"<p>{_marked(line)}</p>" for line in report.summary)
    warnings = "".join(f'<p class="warning">{_marked(line)}</p>' for line in report.warnings)
    scripts = f"<script>{_file('tables.js')}</script>"
    if specs:
        scripts += f"\n<script>{_bundle()}</script>\n<script>{_file('page.js')}</script>"
    links = ", ".join(f'<a href="{_text(quote(name))}">{_text(name)}</a>' for name in data)
    numbers = f'<p class="data">Numbers of this page: {links}.</p>' if data else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{_text(report.title)}</title>
<link rel="icon" href="data:,">
<style>{_colors()}{_file("page.css")}</style>
</head>
<body>
<main>
<header>
<h1>{_text(report.title)}</h1>
{question}
<div class="summary" role="note" aria-label="Summary">{summary}</div>
{warnings}
<nav aria-label="Contents"><ul>{contents}</ul></nav>
{numbers}
</header>
{"".join(sections)}
<footer><p>Made by kdschemes {_text(__version__)}.</p></footer>
</main>
<script type="application/json" id="config">{_json(CONFIG)}</script>
{scripts}
</body>
</html>
"""


class _Body:
    """Lays out sections and numbers tables and figures across all of them."""

    def __init__(self, specs: Mapping[str, Any]) -> None:
        self._specs = specs
        self._tables, self._figures = count(1), count(1)

    def section(self, section: Section, name: str) -> str:
        paragraphs = "".join(f"<p>{_marked(text)}</p>" for text in section.text.split("\n\n") if text.strip())
        tables = "".join(map(self._table, section.tables))
        items = "".join(f"<li>{_marked(item)}</li>" for item in section.items)
        below = f"<ul>{items}</ul>\n" if items else ""
        charts = "".join(map(self._chart, section.charts))
        return (
            f'<section id="{name}">\n<h2>{_text(section.title)}</h2>\n{paragraphs}{tables}{below}{charts}</section>\n'
        )

    def _table(self, table: Table) -> str:
        number = next(self._tables)
        kinds = [_kind([row[index] for row in table.rows]) for index in range(len(table.columns))]
        head = "".join(
            f"<th scope=col{kind}>{_text(title)}</th>" for title, kind in zip(table.columns, kinds, strict=True)
        )
        rows = "".join(
            f"<tr><th scope=row>{_text(row[0])}</th>"
            + "".join(f"<td{kind}>{_text(cell)}</td>" for cell, kind in zip(row[1:], kinds[1:], strict=True))
            + "</tr>"
            for row in table.rows
        )
        caption = f'<figcaption id="table-{number}"><b>Table {number}.</b> {_marked(table.caption)}</figcaption>'
        return (
            f'<figure class="table">{caption}<div class="scroll" tabindex="0" role="region" '
            f'aria-labelledby="table-{number}"><table aria-labelledby="table-{number}"><thead><tr>{head}</tr></thead>'
            f"<tbody>{rows}</tbody></table></div></figure>\n"
        )

    def _chart(self, chart: Chart) -> str:
        number = next(self._figures)
        label = _text(f"Chart {chart.name.replace('_', ' ')}. {chart.caption}")
        caption = f"<figcaption><b>Figure {number}.</b> {_marked(chart.caption)}</figcaption>"
        return (
            f'<figure id="{_text(chart.name)}"><div class="chart" role="img" aria-label="{label}"></div>'
            f'<script type="application/json">{_json(self._specs[chart.name])}</script>{caption}</figure>\n'
        )


def _kind(cells: Sequence[str]) -> str:
    """Return the layout of a column of such cells: numbers, words, or sentences."""
    if all(NUMERIC.fullmatch(cell) for cell in cells):
        return ""
    return ' class="words long"' if max(map(len, cells)) > LONG else " class=words"


def _text(text: str) -> str:
    """Return plain text as HTML, also within quotes."""
    return escape(printable(text, lines=True))


def _marked(text: str) -> str:
    """Return text as HTML: `**bold**` and code in backticks are the only markup."""
    safe = _text(text)
    safe = re.sub(r"`([^`]+)`", r"<code>\1</code>", safe)
    return re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", safe)


def _json(tree: Any) -> str:
    """Return JSON that is safe inside a script element: nothing in it closes the element."""
    return json.dumps(tree, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")


def _colors() -> str:
    def of(theme: str) -> str:
        return "".join(f"--{name}:{value};" for name, value in PALETTES[theme].items())

    return (
        f":root{{color-scheme:light dark;--sans:{FONT};{of('light')}}}"
        f"@media screen and (prefers-color-scheme: dark){{:root{{{of('dark')}}}}}"
    )


def _file(name: str) -> str:
    return files("kdschemes.report").joinpath(name).read_text()


@cache
def _bundle() -> str:
    found: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", VEGA_LITE)
    return found.replace("</script", "<\\/script")
