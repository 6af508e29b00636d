"""What each key may be and what it means: the text of `--help` and of every error about a value."""

from __future__ import annotations

import dataclasses
import textwrap
import types
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import annotated_types
from pydantic.fields import FieldInfo

from kdschemes.config import MODELS, Config, Model, Optim, Teacher, Train, losses, schemes
from kdschemes.config.data import DATA
from kdschemes.config.schemes.custom import Topology
from kdschemes.errors import UserError, nearest

USAGE = """\
usage: {program} [KEY=VALUE ...]        (or: accelerate launch run.py [KEY=VALUE ...])

GROUP=NAME chooses (scheme=, data=, model=, teacher=, losses.response=, ...); GROUP.KEY=VALUE sets.
The same command again resumes from its last checkpoint.
"""

EXAMPLES = """
examples
  {program} scheme=online                           two peers teach each other, on scikit-learn's digits
  {program} scheme=offline teacher=resnet18_cifar scheme.alpha=0.9 losses.response.temperature=4
  {program} scheme=offline losses.response=dkd losses.feature=at
  {program} scheme=self method=ban data=cifar10 model=resnet20 precision=bf16
  {program} experiment=NAME                         a recipe of experiments/, or a path: a run's config.yaml too
"""

MORE = """
more help
  --help scheme=offline method=camkd   a method's keys    --help losses.response=dkd   a loss's keys
  --help optim    a group's: run, scheme, data, model, teacher, losses, optim, train
  --help train.epochs   one key       --help all   every key
"""

MOST_USED = (
    *("seed", "precision", "device", "tracker", "output", "scheme.alpha", "teacher.checkpoint"),
    *("teacher.cache", "losses.response.temperature", "data.root", "data.fraction", "optim.name", "optim.lr"),
    *("optim.weight_decay", "optim.schedule", "optim.clip", "train.epochs", "train.batch_size", "train.ema"),
)
"""The keys on the page that `--help` alone prints."""

WIDTH = 100
"""Columns of that page."""

GROUPS = (Config, Model, Teacher, Optim, Train, losses.Losses)
"""Classes of keys that are there whatever is chosen."""

RUN = "run"
"""What `--help` calls the keys without a group."""

LOSS_PREFIXES = tuple(f"losses.{kind}" for kind in losses.KINDS)


class Rule(NamedTuple):
    """What a value may be: in words, and the words to choose from where there are any."""

    text: str
    words: tuple[str, ...] = ()


class Row(NamedTuple):
    """A key with its default, what it means, what it may be."""

    head: str
    meaning: str
    rule: str

    def __str__(self) -> str:
        return f"  {self.head:<40} {self.meaning} [{self.rule}]"


class Section(NamedTuple):
    """One choice on the page of all keys: the prefix of its keys, its class, its title, its keys."""

    prefix: str
    cls: type
    title: str
    rows: dict[str, Row]

    @property
    def name(self) -> str:
        """What chooses it, as `losses.response=kd`; a group of keys that nothing chooses is called by its prefix."""
        name = getattr(self.cls, "name", "") if self.prefix and self.cls not in GROUPS else ""
        return f"{self.prefix}={name}" if name else self.prefix or RUN

    @property
    def method(self) -> str:
        """The method that it is of, if any."""
        return getattr(self.cls, "method", "")

    @property
    def words(self) -> set[str]:
        """The words that mean it: what chooses it, with or without its group; a method's, too."""
        method = {f"method={self.method}", self.method} if self.method else set()
        return {self.name, self.name.partition("=")[2], *method} - {""}


def choices() -> Iterator[tuple[str, type]]:
    """Yield each class of options with the prefix of its keys, the whole `Config` first."""
    yield "", Config
    for methods in schemes.SCHEMES.values():
        for cls in methods.values():
            yield "scheme", cls
    yield "scheme", Topology
    for data in DATA.values():
        yield "data", data
    yield from (("model", Model), ("teacher", Teacher), ("optim", Optim), ("train", Train))
    yield "losses", losses.Losses
    for kind, table in losses.KINDS.items():
        for cls in table.values():
            yield f"losses.{kind}", cls


def help_page(program: str, words: Sequence[str]) -> str:
    """Return what `--help` answers: a page of the most used keys, or what the words after it ask for.

    Raises:
        UserError: a word is neither a group, nor a choice, nor a key; the message names the nearest.
    """
    if not words:
        return _short_page(program)
    if list(words) == ["all"]:
        return help_text(program)
    sections = list(_sections())
    asked = {word.replace("scheme.method=", "method="): _named(sections, word) for word in words}
    methods = [name for name in asked if name.startswith("method=")]
    for scheme in [name for name in asked if name.startswith("scheme=") and methods]:
        both = [section for method in methods for section in asked[method] if section in asked[scheme]]
        if asked[scheme] and not both:
            others = ", ".join(section.method for section in asked[scheme])
            raise UserError(f"{scheme} has no {methods[0]} (choose from {others})")
        asked |= {scheme: both} | {method: [s for s in asked[method] if s in both] for method in methods}
    parts = [part for word, found in asked.items() for part in _parts(sections, word, found)]
    return "\n\n".join(dict.fromkeys(parts)) + "\n"


def _named(sections: Iterable[Section], word: str) -> list[Section]:
    """Return the sections of what a word chooses: of each choice of that name, or of a group, as `model=resnet20`."""
    word = word.replace("scheme.method=", "method=")
    key, _, value = word.partition("=")
    return [s for s in sections if word in s.words or (s.cls in GROUPS and value and key == s.prefix)]


def _parts(sections: list[Section], word: str, found: list[Section]) -> list[str]:
    """Return what there is to tell of a word: `found`, a group of choices, or one key.

    Raises:
        UserError: it is none of them.
    """
    group = [s for s in sections if word in (s.prefix, s.prefix.partition(".")[0]) and s not in found]
    parts = [_keys(section) for section in found]
    if group:
        head = f"{word}: choose one; its keys, for example: --help {group[-1].name}"
        parts.append("\n".join([head, *(f"  {section.title}" for section in group)]))
    if parts:
        return parts
    rows = _all_rows(sections)
    key = word.partition("=")[0]
    if key not in rows:
        topics = {*(w for s in sections for w in (s.prefix, *s.words)), *rows, "all"}
        raise UserError(f"no help on '{word}'{nearest(word, topics)} (--help tells what there is)")
    return ["\n".join(dict.fromkeys(map(str, rows[key])))]


def _all_rows(sections: Iterable[Section]) -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = {}
    for section in sections:
        for key, row in (section.rows | _shared_rows(section)).items():
            rows.setdefault(key, []).append(row)
    return rows


def _shared_rows(section: Section) -> dict[str, Row]:
    """Return the keys that a loss shares with all others, which the page of all keys tells once."""
    if section.prefix not in LOSS_PREFIXES:
        return {}
    return _rows(section.prefix, section.cls)


def _keys(section: Section) -> str:
    rows = [*section.rows.values(), *_shared_rows(section).values()]
    return "\n".join([section.title or section.name, *(map(str, rows) if rows else ["  no keys"])])


def _short_page(program: str) -> str:
    sections = list(_sections())
    lines = [USAGE.format(program=program) + EXAMPLES.format(program=program), "choices"]
    chosen = {f"scheme={scheme} method=": list(methods) for scheme, methods in schemes.SCHEMES.items()}
    chosen |= {"data=": list(DATA), "model=, teacher=": [*MODELS, "timm/NAME"]}
    chosen |= {f"losses.{kind}=": list(table) for kind, table in losses.KINDS.items()}
    for head, names in chosen.items():
        lines += textwrap.wrap(f"{head:<28}{', '.join(names)}", WIDTH, initial_indent="  ", subsequent_indent=" " * 30)
    lines += ["", "most used keys and their defaults"]
    rows = _all_rows(sections)
    for head, meaning, _ in (rows[key][0] for key in MOST_USED):
        short = textwrap.shorten(meaning.partition(";")[0], WIDTH - 36, placeholder=" ...")
        lines.append(f"  {head:<34}{short}")
    return "\n".join(lines) + "\n" + MORE


def help_text(program: str = "run.py") -> str:
    """Return the text of `--help all`: every key of every choice with its default and meaning."""
    lines = [USAGE.format(program=program) + EXAMPLES.format(program=program)]
    previous = None
    for section in _sections():
        if section.prefix != previous or section.title:
            lines.append(f"\n{section.title or section.prefix or 'whole run'}")
        previous = section.prefix
        lines += map(str, section.rows.values())
    return "\n".join(lines) + "\n"


def _sections() -> Iterator[Section]:
    shared = dataclasses.fields(losses.Ramp)
    for prefix, cls in choices():
        if cls is losses.NoLoss:
            continue
        rows: dict[str, Row] = {}
        if prefix == "losses":
            rows |= _rows("losses.KIND", losses.Ramp)
        if not prefix:
            rows["experiment"] = _row("experiment", "", "a recipe to start from", "NAME or PATH")
            rows["method"] = _row("method", "", "short for scheme.method", "see below")
        rows |= _rows(prefix, cls, without=shared if prefix in LOSS_PREFIXES else ())
        yield Section(prefix, cls, _title(prefix, cls), rows)


def _rows(prefix: str, cls: type, without: Sequence[dataclasses.Field[Any]] = ()) -> dict[str, Row]:
    rows = {}
    for field in dataclasses.fields(cls):
        if field.name in ("name", "method") and get_origin(_hints(cls)[field.name]) is Literal:
            continue
        if dataclasses.is_dataclass(_default(field)) or field in without:
            continue
        key = f"{prefix}.{field.name}" if prefix else field.name
        rows[key] = _row(key, _show(_default(field)), description(cls, field), allowed(field, cls).text)
    return rows


def description(cls: type, field: dataclasses.Field[Any]) -> str:
    """Return the meaning of a field."""
    for extra in get_args(_hints(cls)[field.name])[1:]:
        if isinstance(extra, FieldInfo) and extra.description:
            return extra.description
    return ""


def allowed(field: dataclasses.Field[Any], cls: type | None = None) -> Rule:
    """Return what a field's value may be."""
    if cls is None:
        cls = next(c for _, c in choices() if field in dataclasses.fields(c))
    return _rule(_hints(cls)[field.name])


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


def _rule(hint: Any) -> Rule:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds = [b for extra in arguments[1:] if isinstance(extra, FieldInfo) for b in extra.metadata]
        base = _rule(arguments[0])
        if not bounds:
            return base
        if get_origin(arguments[0]) in (Union, types.UnionType):
            members = [_rule(a) for a in get_args(arguments[0])]
            texts = [
                rule.text + (_bounds(bounds) if member in (int, float) else "")
                for rule, member in zip(members, get_args(arguments[0]), strict=True)
            ]
            return Rule(" or ".join(texts), tuple(word for rule in members for word in rule.words))
        return Rule(base.text + _bounds(bounds), base.words)
    if origin is Literal:
        words = tuple(str(a) for a in arguments)
        return Rule(("one of " if len(words) > 1 else "") + ", ".join(words), words)
    if origin in (Union, types.UnionType):
        rules = [_rule(a) for a in arguments]
        return Rule(" or ".join(r.text for r in rules), tuple(w for r in rules for w in r.words))
    if origin is list:
        inner = _rule(arguments[0])
        return Rule(f"a list [{inner.text}, ...]", inner.words)
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return Rule(names.get(hint, "its keys"))


def _bounds(bounds: list[Any]) -> str:
    words = []
    for bound in bounds:
        match bound:
            case annotated_types.Ge(ge=low):
                words.append(f"at least {low}")
            case annotated_types.Gt(gt=low):
                words.append(f"above {low}")
            case annotated_types.Le(le=high):
                words.append(f"at most {high}")
            case annotated_types.Lt(lt=high):
                words.append(f"below {high}")
            case annotated_types.MinLen(min_length=least):
                words.append(f"at least {least} of them")
    return " " + " and ".join(words) if words else ""


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not MISSING else None


def _show(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _title(prefix: str, cls: type) -> str:
    doc = (cls.__doc__ or "").splitlines()[0]
    name = getattr(cls, "name", None)
    if prefix == "losses":
        return f"losses (KIND is response, feature or relation): {doc}"
    if cls in GROUPS:
        return f"{prefix}: {doc}" if prefix else ""
    if prefix == "scheme":
        return f"scheme={name} method={cls.method}: {doc}"  # type: ignore[attr-defined]
    return f"{prefix}={name}: {doc}" if prefix else ""


def _row(key: str, default: str, meaning: str, rule: str) -> Row:
    return Row(f"{key}={default or '...'}", meaning, rule)
