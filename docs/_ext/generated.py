"""Pages that are written when the site is built, from what `kdschemes methods` and `--help` print.

A page for each method and loss from its card and options, the configuration reference, the Python API, and copies of
`links.COPIES`. They lie in `docs/`, where git ignores them.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from importlib import import_module
from inspect import ismodule
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from sphinx.application import Sphinx
from sphinx.config import Config as Settings
from sphinx.util.typing import ExtensionMetadata

import kdschemes
from kdschemes.cards.read import Card, all_cards, plain
from kdschemes.config import Config, Model, Optim, Teacher, Train
from kdschemes.config.data import DATA, Data, OwnData
from kdschemes.config.help import Key, keys_of
from kdschemes.config.losses import KINDS, Losses, Ramp
from kdschemes.config.models import MODEL_NAMES
from kdschemes.config.naming import in_line
from kdschemes.config.schemes import SCHEMES
from kdschemes.losses.build import MODULES
from links import COPIES, REPOSITORY, on_github

API: dict[str, tuple[str, ...]] = {
    "Load a trained network": (
        "kdschemes.models.load_model",
        "kdschemes.models.load_exit_model",
        "kdschemes.models.EarlyExit",
    ),
    "Configure and train": ("kdschemes.config.load.load_config", "kdschemes.training.train.train"),
    "Topologies": (
        "kdschemes.schemes.distill.distill",
        "kdschemes.schemes.distill.Edge",
        "kdschemes.core.nodes.Network",
        "kdschemes.core.nodes.Ensemble",
        "kdschemes.core.frozen.Frozen",
        "kdschemes.core.distillation.Distillation",
        "kdschemes.schemes.networks.student_network",
        "kdschemes.schemes.networks.teacher_network",
    ),
    "Losses and what they see": (
        "kdschemes.core.loss.Loss",
        "kdschemes.losses.response.base.LogitLoss",
        "kdschemes.core.types.Output",
        "kdschemes.core.types.Batch",
        "kdschemes.core.types.DataSpec",
    ),
}
"""The building blocks of custom topologies, methods and losses, by heading."""

SCHEME_TITLES = {
    "supervised": "Baselines (`scheme=supervised`)",
    "offline": "Offline (`scheme=offline`)",
    "online": "Online (`scheme=online`)",
    "self": "Self-distillation (`scheme=self`)",
}

KIND_TITLES = {
    "response": "Between logits (`losses.response`)",
    "feature": "Between features (`losses.feature`)",
    "relation": "Between relations (`losses.relation`)",
}


def pages(cards: Sequence[Card]) -> Iterator[tuple[str, str]]:
    """Yield the name and the Markdown of every page."""
    for card in cards:
        yield f"{family(card)}/{card.name}", card_page(card)
    methods, losses = ([card for card in cards if card.is_loss == is_loss] for is_loss in (False, True))
    yield "methods/index", index("Methods", SCHEME_TITLES, methods)
    yield "losses/index", index("Losses", KIND_TITLES, losses)
    yield "options", options()
    yield "api", api()
    for name, file in COPIES.items():
        yield name, (REPOSITORY / file).read_text()


def family(card: Card) -> str:
    return "losses" if card.is_loss else "methods"


def sections(card: Card) -> dict[str, str]:
    """Split the prose of a card by its headings; the summary, without its command, is under an empty one."""
    head, *parts = re.split(r"^## ", card.body, flags=re.MULTILINE)
    title, _, summary = head.partition("\n")
    paragraphs = [line for line in summary.strip().splitlines() if not re.fullmatch(r"`.*`", line)]
    found = {name.strip(): text.strip() for name, _, text in (part.partition("\n") for part in parts)}
    return {"title": title.removeprefix("# "), "": "\n".join(paragraphs)} | found


def card_page(card: Card) -> str:
    """Return the page of a method or a loss."""
    found = sections(card)
    chosen = (
        f"scheme=offline losses.{card.kind}={card.name}" if card.is_loss else f"scheme={card.kind} method={card.name}"
    )
    bibtex = "\n\n".join(entry.text for entry in card.entries)
    parts = [
        f"# {found['title']}\n\n{found['']}",
        f"```sh\nkdschemes train {chosen}\n```",
        f"## Formula\n\n```{{math}}\n{card.latex}\n```\n\n{found['Equation']}",
        f"## Paper\n\n{found['Paper']}\n\n:::{{dropdown}} BibTeX\n```bibtex\n{bibtex}\n```\n:::",
        f"## Options\n\n{option_table(card)}",
        *(f"## {name}\n\n{found[name]}" for name in ("Convention", "Deviations") if name in found),
        f"## Our check\n\n{check(card)}",
        *(f"## {name}\n\n{found[name]}" for name in ("Cost of training", "Our number") if name in found),
    ]
    if card.is_loss:
        parts.append(f"## In Python\n\n{autodoc(functions_of(card), indexed=False)}")
    text = re.sub(r"(?<!/)\bexperiments/results[\w/.]*\w", _linked, "\n\n".join(parts))
    return f"{text}\n"


def _linked(path: re.Match[str]) -> str:
    return f"[{path[0]}]({on_github(path[0])})"


def option_table(card: Card) -> str:
    """Return the keys of a method or loss, with the defaults that a run of it has."""
    if card.is_loss:
        prefix = f"losses.{card.kind}"
        return table(
            key._replace(default=default(card, key, prefix)) for key in keys_of(prefix, KINDS[card.kind][card.name])
        )
    rows = [key._replace(default=default(card, key, "")) for key in keys_of("scheme", SCHEMES[card.kind][card.name])]
    losses = {name: value for name, value in card.defaults.items() if name.startswith("losses.")}
    start = [
        f"`{name.removesuffix('.name')}={in_line(value)}`" for name, value in losses.items() if name.endswith(".name")
    ]
    text = table(rows) if rows else "It has no options of its own."
    if start:
        changed = [
            f"`{name}={in_line(value)}`" for name, value in losses.items() if name.endswith((".weight", ".temperature"))
        ]
        text += (
            f"\n\nThe losses that it starts from: {', '.join([*start, *changed])}; [all losses](../losses/index.md)."
        )
    return text


def default(card: Card, key: Key, prefix: str) -> str:
    """Return the value that a run has by default, which a method may have changed."""
    name = key.name.removeprefix(f"{prefix}.") if prefix else key.name
    return in_line(card.defaults[name]) if name in card.defaults else key.default


def table(keys: Iterator[Key] | Sequence[Key]) -> str:
    """Return keys as a Markdown table."""
    lines = ["| key | default | may be | meaning |", "| --- | --- | --- | --- |"]
    for key in keys:
        cells = (f"`{key.name}`", f"`{key.default}`" if key.default else "", key.allowed, key.meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


@cache
def recorded() -> tuple[str, ...]:
    """The names of the recorded values of other implementations."""
    return tuple(json.loads((REPOSITORY / "tests" / "reference" / "losses.json").read_text())["references"])


def check(card: Card) -> str:
    """Say with what a method or loss is compared, and which files do it."""
    file = test_file(card)
    lines = []
    if card.is_loss and card.reference != "see the card":
        lines.append(f"- Reference implementation: {card.reference}.")
    names = [f"`{name}`" for name in recorded() if f'"{name}"' in (REPOSITORY / file).read_text()]
    if names:
        values = f"[recorded values]({on_github('tests/reference')}) of other implementations"
        lines.append(f"- Value and gradient equal the {values}: {', '.join(names)}.")
    what = "value and gradient" if card.is_loss else "the total loss of a step"
    lines.append(f"- [{file}]({on_github(file)}) compares {what} with a formula of its own.")
    golden = f"tests/golden/{card.kind}-{card.name}.json"
    if not card.is_loss and (REPOSITORY / golden).is_file():
        lines.append(
            f"- [{golden}]({on_github(golden)}) holds the losses of its first steps, which no change may alter."
        )
    return "\n".join(lines)


def test_file(card: Card) -> str:
    """Return the test file of a method or loss, as a path in the repository."""
    if card.is_loss:
        folder, _, name = implementation(card).__module__.replace("kdschemes", "tests", 1).rpartition(".")
        return f"{folder.replace('.', '/')}/test_{name}.py"
    folder = {"self": "self_distillation"}.get(card.kind, card.kind)
    return f"tests/schemes/{folder}/test_{card.name}.py"


def implementation(card: Card) -> Any:
    """Return what computes a loss: a function of logits, or the class of its module."""
    made = MODULES[KINDS[card.kind][card.name]]
    return made.args[0] if isinstance(made, partial) else made


def functions_of(card: Card) -> list[str]:
    """Return the pure functions of a loss by their full names."""
    made = implementation(card)
    if isinstance(made, FunctionType):
        return [f"{made.__module__}.{made.__name__}"]
    module = import_module(made.__module__)
    return [f"{module.__name__}.{name}" for name in public_functions(module)] + [f"{module.__name__}.{made.__name__}"]


def public_functions(module: ModuleType) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    ]


def index(title: str, groups: Mapping[str, str], cards: Sequence[Card]) -> str:
    """Return the page that lists the cards of one family, by scheme or by kind."""
    parts = [f"# {title}", "```{toctree}\n:hidden:\n\n" + "\n".join(card.name for card in cards) + "\n```"]
    for kind, heading in groups.items():
        lines = ["| name | what it does | paper |", "| --- | --- | --- |"]
        for card in (card for card in cards if card.kind == kind):
            summary = sections(card)[""].replace("\n", " ")
            first = card.entries[0]
            paper = f"{first.authors} {first.field('year')}, *{plain(first.field('title'))}*"
            lines.append(f"| [{card.name}]({card.name}.md) | {summary} | {paper} |".replace("\\|", "|"))
        parts.append(f"## {heading}\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def options() -> str:
    """Return the configuration reference."""
    names = ", ".join(f"`{name}`" for name in MODEL_NAMES)
    parts = [
        "# Configuration reference",
        "Every key, with its default, what it may be and what it means, as `kdschemes train --help all` prints them. "
        "How keys are written and combined is described in [configuration](configuration.md). Defaults of the groups "
        "are those for CIFAR-100; other data sets change some of them, as said below.",
        f"## The run\n\n{table(keys_of('', Config))}",
        "## `scheme`\n\n`scheme=NAME` and `method=NAME` choose a method; its keys are on its page.\n\n"
        + methods_table(),
        "## `losses`\n\n`losses.KIND=NAME` chooses a loss; its keys are on its page, and each has these:\n\n"
        + table([*keys_of("losses.KIND", Ramp), *keys_of("losses", Losses)]),
        f"## `data`\n\nKeys of all data sets:\n\n{table(keys_of('data', Data))}",
        *(data_section(f"data={name}", cls) for name, cls in DATA.items()),
        data_section("data=FILE.py:NAME", OwnData),
        f"## `model`\n\n{table(keys_of('model', Model))}\n\nNetworks: {names}.",
        f"## `teacher`\n\n{table(keys_of('teacher', Teacher))}\n\nIts optimizer has the keys of `optim` under "
        "`teacher.optim`.",
        f"## `optim`\n\n{table(keys_of('optim', Optim))}",
        f"## `train`\n\n{table(keys_of('train', Train))}",
    ]
    return "\n\n".join(parts) + "\n"


def methods_table() -> str:
    lines = ["| scheme | methods |", "| --- | --- |"]
    lines += [
        f"| `{scheme}` | {', '.join(f'[{name}](methods/{name}.md)' for name in methods)} |"
        for scheme, methods in SCHEMES.items()
    ]
    return "\n".join(lines)


def data_section(title: str, cls: type[Data]) -> str:
    """Return what a data set has beyond the keys of all of them."""
    common = {key.name: key for key in keys_of("data", Data)}
    own = [key for key in keys_of("data", cls) if common.get(key.name) != key]
    defaults = [
        f"`{group}{'' if key == 'name' else f'.{key}'}={in_line(value)}`"
        for group, keys in cls.run_defaults.items()
        for key, value in keys.items()
    ]
    parts = [f"### `{title}`", (cls.__doc__ or "").strip().splitlines()[0]]
    parts += [table(own)] * bool(own) + [f"Other defaults: {', '.join(defaults)}."] * bool(defaults)
    return "\n\n".join(parts)


def api() -> str:
    """Return the page of the Python API: the package's public names, and the building blocks."""
    parts = [
        "# Python API",
        "Everything here is typed. Losses, as functions and modules, are on [their pages](losses/index.md).",
    ]
    public = [
        name for name in kdschemes.__all__ if not name.startswith("__") and not ismodule(getattr(kdschemes, name))
    ]
    names = [f"kdschemes.{name}" for name in public]
    parts.append("## `kdschemes`\n\n" + autodoc(names))
    parts += [f"## {title}\n\n{autodoc(found)}" for title, found in API.items()]
    return "\n\n".join(parts) + "\n"


def autodoc(names: Sequence[str], *, indexed: bool = True) -> str:
    """Return the directives that document functions and classes."""
    lines = []
    for name in names:
        module, _, attribute = name.rpartition(".")
        is_class = inspect.isclass(getattr(import_module(module), attribute))
        lines.append(f".. auto{'class' if is_class else 'function'}:: {name}")
        lines += ["   :no-index:"] * (not indexed) + ["   :members:"] * (is_class and indexed) + [""]
    return "```{eval-rst}\n" + "\n".join(lines).rstrip() + "\n```"


def write(folder: Path, found: Iterable[tuple[str, str]]) -> None:
    """Write the pages that have changed, and remove those of methods and losses that are gone."""
    written = set()
    for name, text in found:
        path = folder / f"{name}.md"
        written.add(path)
        if not path.is_file() or path.read_text() != text:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    for stale in {*folder.glob("methods/*.md"), *folder.glob("losses/*.md")} - written:
        stale.unlink()


LISTS = ("decisions/README", "results/README")
"""Pages that list the others of their folder."""


def with_toctree(text: str, page: str, folder: Path) -> str:
    """Add what the site's navigation needs, and GitHub would show as text, to a page."""
    if page in LISTS and len([*(folder / page).parent.glob("*.md")]) > 1:
        return f"{text}\n\n```{{toctree}}\n:hidden:\n:glob:\n\n*\n```\n"
    return text


def _read(app: Sphinx, page: str, content: list[str]) -> None:
    content[0] = with_toctree(content[0], page, Path(app.srcdir))


def _write(app: Sphinx, _settings: Settings) -> None:
    write(Path(app.srcdir), pages(all_cards()))


def setup(app: Sphinx) -> ExtensionMetadata:
    app.connect("config-inited", _write)
    app.connect("source-read", _read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
