"""Messages of errors are one plain line."""

from __future__ import annotations

import pytest

from kdschemes.errors import first_line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("one\ntwo", "one"),
        ("\n\x1b[1mDo this\x1b[0m now", "Do this now"),
        ("a\x1b[38;5;9m\tb\x07\x9b1m", "ab1m"),
        ("", "ValueError"),
        ("\x1b[0m\n", "ValueError"),
    ],
)
def test_first_line(text: str, line: str) -> None:
    assert first_line(ValueError(text)) == line
