"""Every method and every loss has a card, and what it says of the defaults is what the configuration does."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdschemes.config.load import load_config
from kdschemes.config.losses import KINDS
from kdschemes.config.naming import to_tree
from kdschemes.config.schemes import SCHEMES

PACKAGE = Path(__file__).resolve().parents[1] / "kdschemes"
CARDS = PACKAGE / "cards" / "methods"
LOSS_CARDS = PACKAGE / "cards" / "losses"
METHODS = [(scheme, method) for scheme, table in SCHEMES.items() for method in table]
LOSSES = [(kind, name) for kind, table in KINDS.items() for name in table if name != "none"]
SECTIONS = ["Paper", "Equation", "Defaults", "Deviations", "Cost of training", "Our number"]
LOSS_SECTIONS = ["Paper", "Equation", "Convention", "Defaults", "Deviations"]


def sections(card: Path) -> dict[str, str]:
    title, *parts = re.split(r"^## ", card.read_text(), flags=re.MULTILINE)
    assert title.startswith("# ")
    return {part.partition("\n")[0]: part.partition("\n")[2] for part in parts} | {"": title}


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found


def defaults(card: Path) -> dict[str, Any]:
    lines = [line for line in sections(card)["Defaults"].splitlines() if line.startswith("|")]
    assert lines[:2] == ["| key | value |", "| --- | --- |"]
    table = [re.fullmatch(r"\| (\S+) \| (.+) \|", line) for line in lines[2:]]
    assert None not in table
    written = {row[1]: yaml.safe_load(row[2]) for row in table if row}
    assert len(written) == len(table)
    return written


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
    assert defaults(CARDS / f"{method}.md") == expected


@pytest.mark.parametrize(("scheme", "method"), METHODS)
def test_card_is_whole(scheme: str, method: str) -> None:
    found = sections(CARDS / f"{method}.md")
    assert [name for name in found if name] == SECTIONS
    assert all(text.strip() for text in found.values())
    (entry,) = re.findall(r"```bibtex\n(.*?)```", found["Paper"], flags=re.DOTALL)
    for field in ("title", "author", "year"):
        assert re.search(rf"^\s+{field}\s+= {{.+}}", entry, flags=re.MULTILINE), field
    (command,) = re.findall(r"`run\.py (.*?)`", found[""])
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
    written = defaults(LOSS_CARDS / f"{name}.md")
    assert written == expected
    assert {key: type(value) for key, value in written.items()} == {key: type(v) for key, v in expected.items()}


@pytest.mark.parametrize(("kind", "name"), LOSSES)
def test_card_of_a_loss_is_whole(kind: str, name: str) -> None:
    text = (LOSS_CARDS / f"{name}.md").read_text()
    assert [line for line in text.splitlines() if len(line) > 120] == []
    found = sections(LOSS_CARDS / f"{name}.md")
    assert [section for section in found if section] == LOSS_SECTIONS
    assert all(section.strip() for section in found.values())
    (paper,) = re.findall(r"```bibtex\n(.*?)```", found["Paper"], flags=re.DOTALL)
    assert re.match(r"@\w+\{[\w:-]+,\n", paper)
    for field in ("title", "author", "year"):
        assert re.search(rf"^\s+{field}\s+= {{.+", paper, flags=re.MULTILINE), field
    formula = next(line for line in found["Equation"].splitlines() if line.startswith("    "))
    assert len(formula.strip()) < 90
    assert formula.strip().startswith("L")
    assert all(line.startswith(("- ", "  ")) for line in found["Deviations"].splitlines() if line)
    (command,) = re.findall(r"^`(losses\..*?)`", found[""], flags=re.MULTILINE)
    losses = load_config(["scheme=offline", *command.split()], recipes=CARDS).losses
    assert (kind, name) in [(chosen, options.name) for chosen, options in losses.chosen()]
    assert command.split()[0] == f"losses.{kind}={name}"
