"""Every method has a card, and what the card says of its defaults is what the configuration does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdschemes.config.load import load_config, to_tree
from kdschemes.config.schemes import SCHEMES

CARDS = Path(__file__).resolve().parents[1] / "kdschemes" / "schemes" / "cards"
METHODS = [(scheme, method) for scheme, table in SCHEMES.items() for method in table]
SECTIONS = ["Paper", "Equation", "Defaults", "Deviations", "Cost of training", "Our number"]


def sections(method: str) -> dict[str, str]:
    title, *parts = re.split(r"^## ", (CARDS / f"{method}.md").read_text(), flags=re.MULTILINE)
    assert title.startswith("# ")
    return {part.partition("\n")[0]: part.partition("\n")[2] for part in parts} | {"": title}


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found


def test_methods_and_cards_match() -> None:
    names = [method for _, method in METHODS]
    assert sorted(names) == sorted(path.stem for path in CARDS.glob("*"))
    assert len(set(names)) == len(names), "a card is found by its method's name alone"


@pytest.mark.parametrize(("scheme", "method"), METHODS)
def test_defaults_are_those_of_the_configuration(scheme: str, method: str) -> None:
    tree = to_tree(load_config([f"scheme={scheme}", f"method={method}"], recipes=CARDS))
    losses = {kind: options for kind, options in tree.get("losses", {}).items() if options["name"] != "none"}
    expected = flat({"scheme": tree["scheme"], "losses": losses})
    del expected["scheme.name"], expected["scheme.method"]
    table = re.findall(r"^\| (\S+) \| (.+) \|$", sections(method)["Defaults"], flags=re.MULTILINE)
    written = {key: yaml.safe_load(value) for key, value in table if key not in ("key", "---")}
    assert written == expected
    assert len(written) == len(table) - 2


@pytest.mark.parametrize(("scheme", "method"), METHODS)
def test_card_is_whole(scheme: str, method: str) -> None:
    found = sections(method)
    assert [name for name in found if name] == SECTIONS
    assert all(text.strip() for text in found.values())
    (entry,) = re.findall(r"```bibtex\n(.*?)```", found["Paper"], flags=re.DOTALL)
    for field in ("title", "author", "year"):
        assert re.search(rf"^\s+{field}\s+= {{.+}}", entry, flags=re.MULTILINE), field
    (command,) = re.findall(r"`run\.py (.*?)`", found[""])
    named = load_config(command.split(), recipes=CARDS).scheme
    assert (named.name, named.method) == (scheme, method)
