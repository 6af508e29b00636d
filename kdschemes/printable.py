"""Text from outside (names, labels, messages of libraries) as it is shown on a terminal, in a chart or on a page."""

from __future__ import annotations

import re

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)

_BREAK = re.compile("[\t\n]")


def printable(text: str, *, lines: bool = False) -> str:
    r"""Return text in which characters that act instead of being seen are spelled out, such as `\x1b`.

    These are control characters, those that change the direction of writing, and what is no character, which no file or
    picture takes. With `lines`, line breaks and tabs are kept.
    """
    seen = _UNSEEN.sub(_spelled, text)
    return seen if lines else _BREAK.sub(_spelled, seen)


def _spelled(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
