"""What acts instead of being seen is spelled out, and everything else stays."""

from __future__ import annotations

import pytest

from kdschemes.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x00\x07\x08\r\x7f\x85\x9b", r"\x00\x07\x08\r\x7f\x85\x9b"),
        ("a\u202eb\u2066c\u200f", r"a\u202eb\u2066c\u200f"),
        ("\ud800\udc80\uffff", r"\ud800\udc80\uffff"),
        ("a\nb\tc", r"a\nb\tc"),
        ("naïve 数 👩\u200d🔬 نمی\u200cخواهم \\x1b", "naïve 数 👩\u200d🔬 نمی\u200cخواهم \\x1b"),
    ],
)
def test_only_what_acts_is_spelled_out(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown
    shown.encode()


def test_lines_are_kept_where_there_are_any() -> None:
    assert printable("a\nb\tc\x1b\r\n", lines=True) == "a\nb\tc\\x1b\\r\n"
