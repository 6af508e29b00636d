"""Docstrings keep code and formulas; other marks of reStructuredText are text."""

from __future__ import annotations

import pytest

from docstrings import restructured


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Sum over `stages`.", "Sum over ``stages``\\ ."),
        (r"Return $\frac1N \sum_n x_n$, *", "Return :math:`\\frac1N \\sum_n x_n`\\ , \\*"),
        ("KL(p || q) of z_ and x_i", r"KL(p \|\| q) of z\_ and x_i"),
        ("$a\n    b$", ":math:`a b`\\ "),
    ],
)
def test_a_paragraph(text: str, expected: str) -> None:
    assert restructured(text) == expected
