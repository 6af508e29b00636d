"""The cards of all methods and losses: read, found by name, listed. Nothing here imports torch."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
from importlib.resources import files

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
    """What is said of a method (`kind` is its scheme) or of a loss (`kind` is its kind of knowledge)."""

    name: str
    kind: str
    path: str
    text: str
    weight: str

    @property
    def is_loss(self) -> bool:
        """Whether this is a loss's card."""
        return self.kind in KINDS

    @cached_property
    def sections(self) -> dict[str, str]:
        """The text of each section by its heading; the text before the first one by the empty word."""
        head, *parts = re.split(r"^## ", self.text, flags=re.MULTILINE)
        return {"": head} | {part.partition("\n")[0].strip(): part.partition("\n")[2].strip("\n") for part in parts}

    @cached_property
    def entries(self) -> list[Entry]:
        """The BibTeX of the paper."""
        return entries("\n".join(re.findall(r"```bibtex\n(.*?)```", self.sections.get("Paper", ""), flags=re.DOTALL)))

    @property
    def formula(self) -> str:
        """The first indented line of the equation, with dots where the formula goes on."""
        lines = [line for line in self.sections.get("Equation", "").splitlines() if line.startswith("    ")]
        goes_on = len(lines) > 1 and lines[1].startswith("     ")
        return " ".join(lines[0].split()) + " ..." * goes_on if lines else ""

    @property
    def reference(self) -> str:
        """What the convention names first, if that is short: the reference implementation."""
        text = " ".join(self.sections.get("Convention", "").split())
        text = re.sub(r"^`[^`]+` \(the default\): |^The default is | \((the default|golden)\)", "", text)
        first = re.split(r"[.;:](?=\s|$)|,? (?:which|with|beside|to which|on its|at the)\b", text)[0]
        names_code = ("`" in first or "code" in first) and first.count("(") == first.count(")")
        return first.strip(",") if names_code and len(first) <= 100 else "see the card"


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
    options = {key: getattr(config.scheme, key, None) for key in ("alpha", "hard")}
    weights = [f"{key} {value:g}" for key, value in options.items() if value is not None]
    weights += [f"{loss.name} {loss.weight:g}" for _, loss in config.losses.chosen()]
    return _read(method, scheme, "methods", ", ".join(weights))


def loss_card(kind: str, name: str) -> Card:
    """Read the card of a loss."""
    default = next((field.default for field in fields(KINDS[kind][name]) if field.name == "weight"), "")
    return _read(name, kind, "losses", f"{default:g}" if isinstance(default, float) else str(default))


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


def _read(name: str, kind: str, family: str, weight: str) -> Card:
    path = f"cards/{family}/{name}.md"
    try:
        text = (files("kdschemes") / path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{kind}/{name} has no card: write kdschemes/{path}") from None
    return Card(name, kind, path, text.rstrip(), weight)


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
