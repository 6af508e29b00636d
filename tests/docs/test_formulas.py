"""Formulas become paths: drawn in the text's color and on its baseline."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

import formulas
from kdschemes.cards.read import cards_named


def drawn(latex: str) -> ElementTree.Element:
    return ElementTree.fromstring(formulas.svg(latex))


@pytest.mark.parametrize("name", ["byot", "crd", "zipf"])
def test_formula_of_a_card(name: str) -> None:
    """The others are drawn when the site is built, where a formula that cannot be drawn is an error."""
    (card,) = cards_named(name)
    for line in formulas.lines(card.latex):
        element = drawn(line)
        assert element.attrib["fill"] == "currentColor"
        assert element.attrib["aria-label"] == line
        assert element[0].attrib["d"].startswith("M")


def test_size_and_baseline() -> None:
    low, high = drawn("x"), drawn(r"\frac{x}{y}")
    heights = [float(re.findall(r"height:([\d.]+)em", each.attrib["style"])[0]) for each in (low, high)]
    depths = [float(re.findall(r"vertical-align:(-?[\d.]+)em", each.attrib["style"])[0]) for each in (low, high)]
    assert 0.3 < heights[0] < 0.7 < heights[1]
    assert -0.1 < depths[0] <= 0 < -depths[1]


@pytest.mark.parametrize(
    ("short", "full"),
    [
        (r"\frac12", r"\frac{1}{2}"),
        (r"\frac1{NC}", r"\frac{1}{NC}"),
        (r"\frac\alpha{ND}", r"\frac{\alpha}{ND}"),
        (r"\sqrt C", r"\sqrt{C}"),
        (r"a \lor b \le c", r"a \vee b \leq c"),
        (r"w'_{kn}", r"w_{kn}'"),
    ],
)
def test_what_tex_abbreviates_is_drawn_as_written_out(short: str, full: str) -> None:
    assert drawn(short)[0].attrib["d"] == drawn(full)[0].attrib["d"]


def test_lines_are_split_where_a_formula_breaks() -> None:
    assert formulas.lines("a = b\n\nc = d \\\\ e") == ["a = b", "c = d", "e"]


def test_an_unknown_command_is_an_error() -> None:
    with pytest.raises(ValueError, match="nosuch"):
        formulas.svg(r"\nosuch{x}")
