"""The generated pages hold what cards, options and tests hold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import generated
from kdschemes.cards.read import Card, all_cards, cards_named
from kdschemes.config.data import DATA
from kdschemes.config.help import help_text
from kdschemes.config.validate import all_keys
from tests import REPOSITORY

CARDS = all_cards()


def keys(page: str) -> set[str]:
    return set(re.findall(r"^\| `([^`]+)` \|", page, flags=re.MULTILINE))


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return dict(generated.pages(CARDS))


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_page_of_a_card_is_whole(card: Card, pages: dict[str, str]) -> None:
    page = pages[f"{'losses' if card.is_loss else 'methods'}/{card.name}"]
    assert card.latex in page
    assert all(entry.text in page for entry in card.entries)
    prefix = f"losses.{card.kind}." if card.is_loss else ""
    own = {f"{prefix}{key}" for key in card.defaults if card.is_loss or key.startswith("scheme.")}
    assert keys(page) == own
    for section in ("Paper", "Formula", "Deviations", "Our check"):
        assert f"\n## {section}\n" in page
    (file,) = re.findall(r"^- \[(tests/\S+\.py)\]", page, flags=re.MULTILINE)
    assert (REPOSITORY / file).is_file()


def test_defaults_are_those_of_the_method_and_checks_name_recorded_values(pages: dict[str, str]) -> None:
    assert "| `scheme.alpha` | `0.95` |" in pages["methods/tfkd_self"]
    assert "`DKD.mdistiller`, `DKD.mmrazor`" in pages["losses/dkd"]
    (card,) = cards_named("batch_correlation")
    assert generated.functions_of(card) == ["kdschemes.losses.logit_correlation.batch_correlation"]


def test_configuration_reference_has_every_key_of_the_help(pages: dict[str, str]) -> None:
    shown = keys(pages["options"])
    for topic in ("run", "data", "model", "teacher", "optim", "train"):
        listed = re.findall(r"^  ([a-z_.]+)=", help_text([topic]), flags=re.MULTILINE)
        assert {key for key in listed if key} <= shown
    assert {f"data.{key}" for key in ("num_workers", "root")} <= shown
    assert {key for key in all_keys() if key.startswith("data.")} - {"data.name"} <= shown
    assert all(f"### `data={name}`" in pages["options"] for name in DATA)


def test_lists_name_every_card(pages: dict[str, str]) -> None:
    for card in CARDS:
        assert f"[{card.name}]({card.name}.md)" in pages[f"{'losses' if card.is_loss else 'methods'}/index"]


def test_api_lists_the_public_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdschemes.__all__", ["__version__", "UserError"], raising=False)
    monkeypatch.setattr("kdschemes.UserError", ValueError, raising=False)
    page = generated.api()
    assert ".. autoclass:: kdschemes.UserError" in page
    assert "__version__" not in page
    assert ".. autofunction:: kdschemes.models.load_model" in page


def test_only_what_changed_is_written_and_stale_pages_go(tmp_path: Path) -> None:
    generated.write(tmp_path, [("losses/kd", "KD"), ("methods/gone", ""), ("api", "API")])
    page = tmp_path / "losses" / "kd.md"
    before = page.stat().st_mtime_ns
    generated.write(tmp_path, [("losses/kd", "KD"), ("api", "more")])
    assert page.stat().st_mtime_ns == before
    assert [str(file.relative_to(tmp_path)) for file in sorted(tmp_path.rglob("*.md"))] == ["api.md", "losses/kd.md"]
    assert (tmp_path / "api.md").read_text() == "more"


def test_navigation_is_added(tmp_path: Path) -> None:
    assert generated.with_toctree("# Decisions", "decisions/README", REPOSITORY / "docs").endswith("\n*\n```\n")
    assert generated.with_toctree("# Results", "results/README", tmp_path) == "# Results"
