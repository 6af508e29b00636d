"""Every method and every loss has a card: facts that a YAML reader reads, then prose."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdschemes.cards.read import Card, loss_card, method_card, papers
from kdschemes.config.load import load_config
from kdschemes.config.losses import KINDS
from kdschemes.config.naming import to_tree
from kdschemes.config.schemes import SCHEMES
from tests import REPOSITORY

PACKAGE = REPOSITORY / "kdschemes"
CARDS = PACKAGE / "cards" / "methods"
LOSS_CARDS = PACKAGE / "cards" / "losses"
METHODS = [(scheme, method) for scheme, table in SCHEMES.items() for method in table]
LOSSES = [(kind, name) for kind, table in KINDS.items() for name in table if name != "none"]
SECTIONS = ["Paper", "Equation", "Deviations", "Cost of training", "Our number"]
LOSS_SECTIONS = ["Paper", "Equation", "Convention", "Deviations"]


def sections(text: str) -> dict[str, str]:
    title, *parts = re.split(r"^## ", text, flags=re.MULTILINE)
    assert title.startswith("# ")
    return {part.partition("\n")[0]: part.partition("\n")[2] for part in parts} | {"": title}


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found


def printed_defaults(card: Card) -> dict[str, Any]:
    lines = [line for line in sections(card.text)["Defaults"].splitlines() if line.startswith("|")]
    assert lines[:2] == ["| key | value |", "| --- | --- |"]
    return {key: yaml.safe_load(value) for key, value in (line.strip("| ").split(" | ") for line in lines[2:])}


def symbols(text: str) -> str:
    """The letters and digits of a formula in their order, without the words that only its plain text needs."""
    return re.sub(r"[^A-Za-z0-9]", "", re.sub(r"\b(over|of|the)\b", "", text))


LAYOUT = r"frac|left|right|middle|operatorname|mathrm|text|qquad|quad|top|ne|le|ge|to|leftarrow|cdot|ldots"
"""Commands of LaTeX that place symbols or stand for signs."""


def symbols_of_latex(text: str) -> str:
    text = text.replace(r"\epsilon", "eps").replace(r"\times", "x")
    return symbols(re.sub(rf"\\(?:{LAYOUT})\b", "", text).replace("\\", ""))


def check(card: Card, path: Path, kind_key: str, expected: list[str]) -> dict[str, str]:
    text = path.read_text()
    assert text.startswith("---\n")
    facts = yaml.safe_load(text.split("---\n")[1])
    assert facts.keys() - {"reference"} == {"name", kind_key, "papers", "equation", "latex"}
    assert (facts["name"], facts[kind_key]) == (card.name, card.kind)
    assert card.papers
    assert set(card.papers) <= papers().keys()
    found = sections(card.body)
    assert [name for name in found if name] == expected
    shown = sections(card.text)
    assert [name for name in shown if name and name != "Defaults"] == expected
    assert all(section.strip() for section in shown.values())
    assert re.findall(r"```bibtex\n@\w+\{([^,]+),", shown["Paper"]) == list(card.papers)
    assert shown["Equation"].startswith("\n    " + card.equation.splitlines()[0])
    assert symbols_of_latex(card.latex) == symbols(card.equation)
    assert len(re.findall(r"\\left\b", card.latex)) == len(re.findall(r"\\right\b", card.latex))
    return found


def test_methods_and_cards_match() -> None:
    names = [method for _, method in METHODS]
    assert sorted(names) == sorted(path.stem for path in CARDS.glob("*"))
    assert len(set(names)) == len(names), "a card is found by its method's name alone"


@pytest.mark.parametrize(("scheme", "method"), METHODS)
def test_defaults_are_those_of_the_configuration(scheme: str, method: str) -> None:
    tree = to_tree(load_config([f"scheme={scheme}", f"method={method}"], recipes=CARDS))
    chosen = {kind: tree["losses"][kind] for kind in KINDS} if "losses" in tree else {}
    losses = {kind: options for kind, options in chosen.items() if options["name"] != "none"}
    expected = flat({"scheme": tree["scheme"], "losses": losses})
    del expected["scheme.name"], expected["scheme.method"]
    assert printed_defaults(method_card(scheme, method)) == expected


@pytest.mark.parametrize(("scheme", "method"), METHODS)
def test_card_is_whole(scheme: str, method: str) -> None:
    found = check(method_card(scheme, method), CARDS / f"{method}.md", "scheme", SECTIONS)
    (command,) = re.findall(r"`kdschemes train (.*?)`", found[""])
    named = load_config(command.split(), recipes=CARDS).scheme
    assert (named.name, named.method) == (scheme, method)


def test_losses_and_cards_match() -> None:
    names = [name for _, name in LOSSES]
    assert sorted(names) == sorted(path.stem for path in LOSS_CARDS.glob("*"))
    assert len(set(names)) == len(names), "a card is found by its loss's name alone"


@pytest.mark.parametrize(("kind", "name"), LOSSES)
def test_defaults_of_a_loss_are_those_of_its_options(kind: str, name: str) -> None:
    options = KINDS[kind][name]()
    expected = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    assert expected.pop("name") == name
    written = printed_defaults(loss_card(kind, name))
    assert {key: float(v) if isinstance(expected[key], float) else v for key, v in written.items()} == expected


@pytest.mark.parametrize(("kind", "name"), LOSSES)
def test_card_of_a_loss_is_whole(kind: str, name: str) -> None:
    card = loss_card(kind, name)
    found = check(card, LOSS_CARDS / f"{name}.md", "kind", LOSS_SECTIONS)
    assert [line for line in card.body.splitlines() if len(line) > 120] == []
    assert len(card.equation.splitlines()[0]) < 90
    assert card.equation.startswith("L")
    assert all(line.startswith(("- ", "  ")) for line in found["Deviations"].splitlines() if line)
    (command,) = re.findall(r"^`(losses\..*?)`", found[""], flags=re.MULTILINE)
    losses = load_config(["scheme=offline", *command.split()], recipes=CARDS).losses
    assert (kind, name) in [(chosen, options.name) for chosen, options in losses.chosen()]
    assert command.split()[0] == f"losses.{kind}={name}"
