"""Formulas as SVG paths, drawn by matplotlib when the site is built: no network, no JavaScript, no fonts, any color."""

from __future__ import annotations

import re
from functools import cache
from html import escape
from typing import Any

import matplotlib
from docutils import nodes
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import TextToPath
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.typing import ExtensionMetadata

SIZE = 100
"""Units of a path in one em."""

COMMANDS = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C", Path.CLOSEPOLY: "Z"}

ARGUMENT = r"\{(?:[^{}]|\{[^{}]*\})*\}"

REWRITES = (
    (rf"\\frac\s*(\d|[A-Za-z]|\\[A-Za-z]+)\s*({ARGUMENT}|\w)", r"\\frac{\1}{\2}"),
    (r"\\sqrt\s+(\w)", r"\\sqrt{\1}"),
    (r"\\lor\b", r"\\vee"),
    (r"\\(le|ge)\b", r"\\\1q"),
    (rf"'_({ARGUMENT}|\w)", r"_\1'"),
    (rf"(\\sum(?:_(?:{ARGUMENT}|\w))?(?:\^(?:{ARGUMENT}|\w))?)", r"\\,\1\\,"),
    (r"(?<=[\w\])}']) *\\(log|exp)\b", r"\\,\\\1"),
)
"""Patterns of TeX that matplotlib lacks, and what it has."""

logger = logging.getLogger(__name__)


def lines(latex: str) -> list[str]:
    r"""Split a formula where it breaks: at `\\` or at the end of a line."""
    return [part.strip() for part in re.split(r"\\\\|\n", latex) if part.strip()]


@cache
def svg(latex: str) -> str:
    """Draw one line of a formula as an SVG element, as large as the text around it and with its baseline.

    Raises:
        ValueError: matplotlib cannot parse it.
    """
    with matplotlib.rc_context({"mathtext.fontset": "stix"}):
        corners, codes = TextToPath().get_text_path(FontProperties(size=SIZE), f"${_mathtext(latex)}$", ismath=True)
    path = Path(corners, codes)
    left, bottom, right, top = path.get_extents().extents
    words = []
    for points, code in path.iter_segments(simplify=False):
        points[1::2] *= -1  # y grows downwards in an SVG
        words.append(COMMANDS[code] + " ".join(f"{value:.1f}" for value in points if code != Path.CLOSEPOLY))
    left, bottom, right, top = left - 2, bottom - 2, right + 2, top + 2
    box = f"{left:.1f} {-top:.1f} {right - left:.1f} {top - bottom:.1f}"
    sizes = {"width": right - left, "height": top - bottom, "vertical-align": bottom}
    style = ";".join(f"{name}:{size / SIZE:.3f}em" for name, size in sizes.items())
    label = escape(latex, quote=True)
    return (
        f'<svg class="formula" role="img" aria-label="{label}" viewBox="{box}" style="{style}" fill="currentColor">'
        f'<path d="{"".join(words)}"/></svg>'
    )


def _mathtext(latex: str) -> str:
    """Say a formula as matplotlib understands it: braces that TeX lets one omit, other names, spaces that TeX adds."""
    for pattern, replacement in REWRITES:
        latex = re.sub(pattern, replacement, latex)
    return latex


def draw(latex: str, node: nodes.Node) -> str:
    try:
        return svg(latex)
    except ValueError as error:
        reason = str(error).strip().splitlines()[-1]
        logger.warning("formula '%s' cannot be drawn: %s", latex, reason, location=node)
        return f"<code>{escape(latex)}</code>"


def inline(writer: Any, node: nodes.math) -> None:
    writer.body.append(draw(node.astext(), node))
    raise nodes.SkipNode


def block(writer: Any, node: nodes.math_block) -> None:
    drawn = "".join(f"<div>{_indented(line, node)}</div>" for line in lines(node.astext()))
    writer.body.append(f'<div class="math notranslate">{drawn}</div>\n')
    raise nodes.SkipNode


def _indented(line: str, node: nodes.Node) -> str:
    r"""Draw a line of a block; a `\qquad` is a margin, or where a narrow page breaks the line."""
    margin, *parts = line.replace(r"\frac", r"\dfrac").split(r"\qquad")
    drawn = [draw(part.strip(), node) for part in (margin, *parts) if part.strip()]
    return '<span class="indent"></span>' * (not margin.strip()) + '<span class="indent"></span> '.join(drawn)


def setup(app: Sphinx) -> ExtensionMetadata:
    app.add_html_math_renderer("paths", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
