"""Docstrings as reStructuredText: `code` and $formulas$ keep their meaning, all other marks are text."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

PART = re.compile(r"``.+?``|`[^`]+`|\$[^$]+\$", re.DOTALL)


def restructured(text: str) -> str:
    """Convert a paragraph of a docstring."""
    found, end = [], 0
    for match in PART.finditer(text):
        found.append(_plain(text[end : match.start()]))
        inner = " ".join(match[0].strip("`$").split())
        found.append(f":math:`{inner}`\\ " if match[0].startswith("$") else f"``{inner}``\\ ")
        end = match.end()
    found.append(_plain(text[end:]))
    return "".join(found)


def _plain(text: str) -> str:
    return re.sub(r"[\\*|]|_(?!\w)", lambda mark: f"\\{mark[0]}", text)


def convert(_app: Sphinx, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Convert a docstring in place, before napoleon reads its sections."""
    text = "\n".join(lines)
    paragraphs = re.split(r"(\n\s*\n)", text)
    lines[:] = "".join(restructured(part) for part in paragraphs).split("\n")


def setup(app: Sphinx) -> ExtensionMetadata:
    app.connect("autodoc-process-docstring", convert, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
