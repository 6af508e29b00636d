"""The cards of all methods and losses: read, found by name, listed. Nothing here imports torch."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib.resources import files
from textwrap import indent
from typing import Any

import yaml

from kdschemes.config.load import build_config
from kdschemes.config.losses import KINDS, NoLoss
from kdschemes.config.schemes import SCHEMES
from kdschemes.errors import UserError, nearest

ACCENTS = {'"': "\u0308", "'": "\u0301", "`": "\u0300", "^": "\u0302", "~": "\u0303", "c": "\u0327", "v": "\u030c"}
"""LaTeX's accents as combining characters."""

PAGE_HEAD = """\
# Methods and losses

Every method of every scheme and every loss, from their cards. Written by `kdschemes methods --markdown >
docs/losses.md`: change the cards, then write it anew. `kdschemes methods NAME` prints a card, `kdschemes cite RUN` the
BibTeX of what a run used."""


@dataclass(frozen=True)
class Entry:
    """One entry of a BibTeX file."""

    key: str
    text: str

    def field(self, name: str) -> str:
        """Return the value of a field on one line, as LaTeX; nothing where there is no such field."""
        found = re.search(rf"^\s*{name}\s*=\s*{{", self.text, flags=re.MULTILINE | re.IGNORECASE)
        depth = 1
        for end in range(found.end(), len(self.text)) if found else ():
            depth += {"{": 1, "}": -1}.get(self.text[end], 0)
            if depth == 0 and found:
                return " ".join(self.text[found.end() : end].split())
        return ""

    @property
    def authors(self) -> str:
        """The last name of a single author, of both authors, or of the first with `et al.`."""
        people = [plain(person) for person in self.field("author").split(" and ")]
        last = [person.split(",")[0] if "," in person else person.rpartition(" ")[2] for person in people]
        return last[0] + " et al." if len(last) > 2 else " & ".join(last)


@dataclass(frozen=True)
class Card:
    """What is said of a method (`kind` is its scheme) or of a loss (`kind` is its kind of knowledge).

    `papers` are keys of `papers.bib`, `equation` and `reference` (the reference implementation, where a few words name
    it) are facts of the front matter, `body` is the prose below it. `defaults` are the values of the options by key.
    """

    name: str
    kind: str
    path: str
    papers: tuple[str, ...]
    equation: str
    reference: str
    body: str
    defaults: Mapping[str, Any]

    @property
    def is_loss(self) -> bool:
        """Whether this is a loss's card."""
        return self.kind in KINDS

    @property
    def entries(self) -> list[Entry]:
        """The BibTeX of the papers."""
        return [papers()[key] for key in self.papers]

    @property
    def formula(self) -> str:
        """The first line of the equation, with dots where the formula goes on."""
        first, *others = self.equation.splitlines()
        return " ".join(first.split()) + " ..." * bool(others and others[0].startswith(" "))

    @property
    def weight(self) -> str:
        """The weight of a loss; of a method, those of its terms."""
        if self.is_loss:
            return f"{self.defaults['weight']:g}"
        named = [(key, self.defaults.get(f"scheme.{key}")) for key in ("alpha", "ce_weight")]
        chosen = [f"losses.{kind}" for kind in KINDS if f"losses.{kind}.name" in self.defaults]
        named += [(self.defaults[f"{group}.name"], self.defaults[f"{group}.weight"]) for group in chosen]
        return ", ".join(f"{name} {value:g}" for name, value in named if value is not None)

    @property
    def text(self) -> str:
        """The whole card: the prose, with the BibTeX, the equation and the defaults where they belong."""
        bibtex = "".join(f"```bibtex\n{entry.text}\n```\n\n" for entry in self.entries)
        equation = f"{bibtex}## Equation\n\n{indent(self.equation, '    ')}\n"
        rows = ([key, _as_yaml(value)] for key, value in self.defaults.items())
        defaults = f"## Defaults\n\n{_markdown_table(['key', 'value'], rows)}\n\n## Deviations\n"
        return self.body.replace("## Equation\n", equation, 1).replace("## Deviations\n", defaults, 1)


@cache
def papers() -> dict[str, Entry]:
    """Return the entries of `papers.bib` by key."""
    return {entry.key: entry for entry in entries((files("kdschemes.cards") / "papers.bib").read_text("utf-8"))}


def entries(bibtex: str) -> list[Entry]:
    """Split BibTeX into its entries; each begins with `@` and ends with `}` at the start of a line."""
    found = re.finditer(r"^@\w+\{([^,\s]+),.*?^\}", bibtex, flags=re.DOTALL | re.MULTILINE)
    return [Entry(match[1], match[0]) for match in found]


def plain(latex: str) -> str:
    """Return a name or a title as Unicode: accents set, braces taken away."""
    accented = re.sub(
        r"""\{?\\(["'`^~]|[cv](?=\{))\s*\{?\\?(\w)\}?\}?""", lambda match: match[2] + ACCENTS[match[1]], latex
    )
    return unicodedata.normalize("NFC", re.sub(r"[{}]", "", accented))


def method_card(scheme: str, method: str) -> Card:
    """Read the card of a method."""
    config = build_config({"scheme": {"name": scheme, "method": method}})
    groups = {"scheme": config.scheme} | {f"losses.{kind}": options for kind, options in config.losses.chosen()}
    defaults = {f"{group}.{key}": value for group, options in groups.items() for key, value in asdict(options).items()}
    del defaults["scheme.name"], defaults["scheme.method"]
    return _read(method, scheme, "methods", defaults)


def loss_card(kind: str, name: str) -> Card:
    """Read the card of a loss."""
    defaults = asdict(KINDS[kind][name]())
    del defaults["name"]
    return _read(name, kind, "losses", defaults)


def all_cards() -> list[Card]:
    """Read every card: the methods by scheme, then the losses by kind, in the order of their tables."""
    return [read() for _, _, read in _all()]


def cards_named(name: str) -> list[Card]:
    """Return the cards of a method and of a loss of that name, or the one of `SCHEME/METHOD` or `KIND/LOSS`.

    Raises:
        UserError: there is none.
    """
    there = _all()
    found = [read() for kind, own, read in there if name in (own, f"{kind}/{own}")]
    if not found:
        known = [own for _, own, _ in there] + [f"{kind}/{own}" for kind, own, _ in there]
        raise UserError(f"unknown method or loss '{name}'{nearest(name, known)} (kdschemes methods lists them)")
    return found


def listing(width: int | None = None) -> str:
    """Return the tables of all methods and of all losses; formulas give way where a line is wider than `width`."""
    cards = all_cards()
    tables = []
    for head, chosen in (
        (["method", "paper", "scheme", "formula", "default"], [card for card in cards if not card.is_loss]),
        (["loss", "paper", "kind", "formula", "weight"], [card for card in cards if card.is_loss]),
    ):
        rows = [[card.name, _paper(card), card.kind, card.formula, card.weight] for card in chosen]
        tables.append(_aligned([head, *rows], width, shrinks=head.index("formula")))
    return "\n\n".join(tables)


def markdown() -> str:
    """Return the page of all methods and losses."""
    cards = all_cards()
    methods, losses = ([card for card in cards if card.is_loss == is_loss] for is_loss in (False, True))
    tables = (
        _markdown_table(["method", "paper", "year", "scheme", "formula", "default"], map(_cells, methods)),
        _markdown_table(
            ["loss", "paper", "year", "kind", "formula", "weight", "reference implementation"],
            ([*_cells(card), card.reference] for card in losses),
        ),
    )
    return f"{PAGE_HEAD}\n\n## Methods\n\n{tables[0]}\n\n## Losses\n\n{tables[1]}"


def _all() -> list[tuple[str, str, Callable[[], Card]]]:
    methods = [
        (scheme, method, partial(method_card, scheme, method)) for scheme in SCHEMES for method in SCHEMES[scheme]
    ]
    losses = [(kind, name) for kind, table in KINDS.items() for name, cls in table.items() if cls is not NoLoss]
    return [*methods, *((kind, name, partial(loss_card, kind, name)) for kind, name in losses)]


def _read(name: str, kind: str, family: str, defaults: Mapping[str, Any]) -> Card:
    path = f"cards/{family}/{name}.md"
    try:
        text = (files("kdschemes") / path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{kind}/{name} has no card: write kdschemes/{path}") from None
    _, front, body = text.split("---\n", 2)
    facts = yaml.safe_load(front)
    papers, equation, reference = facts["papers"], facts["equation"], facts.get("reference", "see the card")
    return Card(name, kind, path, tuple(papers), equation.rstrip(), reference, body.strip(), defaults)


def _as_yaml(value: Any) -> str:
    text: str = yaml.safe_dump([value], default_flow_style=True, width=float("inf"))
    return text.strip()[1:-1]


def _paper(card: Card) -> str:
    return f"{card.entries[0].authors} {card.entries[0].field('year')}" if card.entries else ""


def _cells(card: Card) -> list[str]:
    first = card.entries[0]
    paper = f"{first.authors}, *{plain(first.field('title'))}*"
    name = f"[{card.name}](../kdschemes/{card.path})"
    return [name, paper, first.field("year"), card.kind, f"`{card.formula}`", card.weight]


def _aligned(rows: Sequence[Sequence[str]], width: int | None, shrinks: int) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if width is not None:
        widths[shrinks] = max(12, widths[shrinks] - max(0, sum(widths) + 2 * len(widths) - 2 - width))
    lines = ("  ".join(_cut(cell, size).ljust(size) for cell, size in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(_cut(line.rstrip(), width) for line in lines)


def _cut(text: str, width: int | None) -> str:
    return text if width is None or len(text) <= width else text[: width - 1] + "…"


def _markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
