"""What each key may be and what it means: the text of `--help` and of every error about a value."""

from __future__ import annotations

import dataclasses
import textwrap
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import annotated_types
from pydantic.fields import FieldInfo

from kdschemes.config import Config, Model, Optim, Teacher, Train, losses, schemes
from kdschemes.config.data import DATA, Data, OwnData
from kdschemes.config.models import MODEL_NAMES
from kdschemes.config.renamed import RENAMED_METHODS, renamed_key
from kdschemes.config.schemes.custom import Topology
from kdschemes.config.unknown import no_such
from kdschemes.errors import UserError, nearest

USAGE = """\
usage: kdschemes train [KEY=VALUE ...]              one process
       accelerate launch run.py [KEY=VALUE ...]     one or several processes, the same keys

Train one run. GROUP=NAME chooses, GROUP.KEY=VALUE sets, later ones win. The same command again
resumes from the last checkpoint.
"""

EXAMPLES = """\
examples
  kdschemes train scheme=online                    two peers teach each other, on digits
  kdschemes train scheme=offline model=resnet20 teacher=resnet56 data=cifar100
  kdschemes train scheme=offline losses.response=dkd losses.feature=at scheme.alpha=0.5
  kdschemes train scheme=self method=byot train.epochs=30 tracker=wandb
  kdschemes train experiment=topologies/offline_self

more help
  --help scheme, --help scheme=offline               the methods of all schemes, or of one
  --help scheme=offline method=camkd                 the keys of a method
  --help losses, --help losses.response=dkd          all losses, the keys of one
  --help data, model, teacher, optim, train or run   the keys of a group
  --help optim.lr                                    one key
  --help all                                         everything
  kdschemes methods NAME                             the card of a method or loss: paper, equation
"""

LOSS_PREFIXES = tuple(f"losses.{kind}" for kind in losses.KINDS)

GROUPS: dict[str, type] = {"model": Model, "teacher": Teacher, "optim": Optim, "train": Train, "run": Config}
"""The groups of keys that every run has in common."""

TABLES: dict[str, dict[str, type]] = {
    "data": DATA,
    **{f"losses.{kind}": table for kind, table in losses.KINDS.items()},
}
"""The groups whose keys depend on a choice; those of `scheme` depend on two."""

FREQUENT: tuple[tuple[str, type, tuple[str, ...]], ...] = (
    ("scheme", schemes.SCHEMES["offline"]["kd"], ("alpha",)),
    ("scheme", schemes.SCHEMES["online"]["dml"], ("peers",)),
    ("losses.response", losses.RESPONSE["kd"], ("weight", "temperature")),
    ("model", Model, ("checkpoint", "pretrained")),
    ("teacher", Teacher, ("checkpoint", "epochs")),
    ("data", DATA["cifar100"], ("root", "val_fraction", "mixup")),
    ("optim", Optim, ("lr", "weight_decay", "lr_schedule")),
    ("train", Train, ("epochs", "batch_size", "ema")),
    ("", Config, ("seed", "precision", "tracker", "output_dir")),
)
"""The keys that runs set most often, which `--help` alone lists."""


class Rule(NamedTuple):
    """What a value may be: in words, and the words to choose from where there are any."""

    text: str
    words: tuple[str, ...] = ()


class Key(NamedTuple):
    """A key, its default value as text (empty if it has none), what it means and what it may be."""

    name: str
    default: str
    meaning: str
    allowed: str


def choices() -> Iterator[tuple[str, type]]:
    """Yield each class of options with the prefix of its keys, the whole `Config` first."""
    yield "", Config
    for methods in schemes.SCHEMES.values():
        yield from (("scheme", cls) for cls in methods.values())
    yield "scheme", Topology
    yield from (("data", cls) for cls in (*DATA.values(), OwnData))
    yield from (("model", Model), ("teacher", Teacher), ("teacher.optim", Optim), ("optim", Optim))
    yield "train", Train
    yield "losses", losses.Losses
    for kind, table in losses.KINDS.items():
        yield from ((f"losses.{kind}", cls) for cls in table.values())


def help_text(words: Sequence[str] = ()) -> str:
    """Return the text of `--help`: an overview, or the keys that the words after it name; `all` names all of them.

    Raises:
        UserError: a word names no group, choice, method, loss or key.
    """
    if not words:
        return _overview()
    if "all" in words:
        sections = (_section(prefix, cls) for prefix, cls in choices() if cls is not losses.NoLoss)
        return "\n\n".join([USAGE, *sections]) + "\n"
    chosen = dict(word.split("=", 1) for word in words if "=" in word)
    scheme, method = chosen.pop("scheme", None), chosen.pop("method", chosen.pop("scheme.method", None))
    pages = [_scheme_page(scheme, method)] if scheme is not None or method is not None else []
    pages += [_page(word) for word in words if word.partition("=")[0] in chosen or "=" not in word]
    return "\n\n".join(dict.fromkeys(pages)) + "\n"


def _overview() -> str:
    """Return an overview for the first runs, a screen or two."""
    default = Config()
    own = DATA[default.data.name].run_defaults
    rows = [
        ("scheme", default.scheme.name, f"who teaches whom: {', '.join(schemes.SCHEMES)}"),
        ("method", default.scheme.method, "how, by a method of the scheme: --help scheme"),
        ("losses.response", "NAME", "what is transferred (or losses.feature, losses.relation)"),
        ("model", own["model"]["name"], "a network of kdschemes, or any timm model as timm/NAME"),
        ("teacher", own["teacher"]["name"], "the frozen network of scheme=offline"),
        ("data", default.data.name, ", ".join(DATA)),
        ("experiment", "NAME", "a shipped recipe, or the path of a recipe or config.yaml"),
    ]
    lines = [USAGE, "choices", *(f"  {f'{key}={value}':<32} {meaning}" for key, value, meaning in rows)]
    lines += ["", "frequent keys and their defaults (on digits)"]
    for prefix, cls, names in FREQUENT:
        for field in (field for field in dataclasses.fields(cls) if field.name in names):
            key = f"{prefix}.{field.name}" if prefix else field.name
            meaning = textwrap.shorten(description(cls, field).partition(";")[0], 65, placeholder=" ...")
            value = own.get(prefix, {}).get(field.name, _default(field))
            lines.append(f"  {f'{key}={_show(value)}':<32} {meaning}")
    return "\n".join([*lines, "", EXAMPLES])


def _page(word: str) -> str:
    """Return the help on a group, a choice, a method, a loss or a key."""
    key, _, name = word.partition("=")
    if key in TABLES and name:
        if name not in TABLES[key]:
            raise no_such(key, name, TABLES[key])
        return _section(key, TABLES[key][name])
    if key in GROUPS:
        return _section("" if key == "run" else key, GROUPS[key])
    if key == "scheme":
        return "\n\n".join(_choices(f"scheme={name}", table) for name, table in schemes.SCHEMES.items())
    if key == "data":
        return f"{_choices('data', DATA)}\n\nkeys of all data sets\n" + "\n".join(_rows("data", Data))
    if key == "losses":
        return "\n\n".join([*(_choices(kind, TABLES[kind]) for kind in LOSS_PREFIXES), _section(key, losses.Losses)])
    if key in TABLES:
        return _choices(key, TABLES[key])
    pages = [_scheme_page(None, key)] if any(key in table for table in schemes.SCHEMES.values()) else []
    pages += [_section(f"losses.{found[0]}", found[1])] if (found := losses.loss_named(key)) else []
    rows = [row for prefix, cls in choices() for row in _rows(prefix, cls) if row.startswith(f"  {key}=")]
    if not pages and not rows:
        raise _unknown_topic(key)
    return "\n\n".join([*pages, *(["\n".join(dict.fromkeys(rows))] if rows else [])])


def _unknown_topic(key: str) -> UserError:
    if new := renamed_key(key):
        return UserError(f"{key} is now {new}")
    topics = ["all", "scheme", "losses", *GROUPS, *TABLES]
    names = [name for table in (*schemes.SCHEMES.values(), *losses.KINDS.values()) for name in table]
    keys = [row.partition("=")[0].strip() for prefix, cls in choices() for row in _rows(prefix, cls)]
    return UserError(f"no help on '{key}'{nearest(key, [*topics, *names, *keys])} (--help lists the topics)")


def _scheme_page(scheme: str | None, method: str | None) -> str:
    """Return the methods of a scheme and the keys of its default, or the keys of a method."""
    if scheme is not None and scheme not in schemes.SCHEMES:
        raise no_such("scheme", scheme, schemes.SCHEMES)
    if method is None:
        table = schemes.SCHEMES[str(scheme)]
        return f"{_choices(f'scheme={scheme}', table)}\n\n{_section('scheme', next(iter(table.values())))}"
    tables = schemes.SCHEMES.values() if scheme is None else [schemes.SCHEMES[scheme]]
    methods = {name: cls for table in tables for name, cls in table.items()}
    if method in RENAMED_METHODS:
        raise UserError(f"method={method} is now method={RENAMED_METHODS[method]}")
    if method not in methods:
        raise no_such("method", method, methods)
    return _section("scheme", methods[method])


def _choices(key: str, table: Mapping[str, type]) -> str:
    """Return a line for each choice."""
    shown = {name: cls for name, cls in table.items() if cls is not losses.NoLoss}
    chosen = f"{key} method" if key.startswith("scheme=") else key
    head = f"{key}: the first is the default" if key not in LOSS_PREFIXES else key
    lines = [f"  {name:<18} {(cls.__doc__ or '').splitlines()[0]}" for name, cls in shown.items()]
    return "\n".join([f"{head} (--help {chosen}=NAME lists the keys of one)", *lines])


def _section(prefix: str, cls: type) -> str:
    """Return the title of a class of options and its keys."""
    lines = [_title(prefix, cls), *_rows(prefix, cls)]
    if cls in (Model, Teacher):
        names = f"  networks: {', '.join(MODEL_NAMES)}"
        lines += textwrap.wrap(names, 110, subsequent_indent="    ", break_on_hyphens=False)
    if prefix == "losses":
        lines += _rows("losses.KIND", losses.Ramp)
    if issubclass(cls, Data) and cls.run_defaults:
        words = [f"{group}.{key}={value}" for group, keys in cls.run_defaults.items() for key, value in keys.items()]
        lines.append(f"  with other defaults: {' '.join(words).replace('.name=', '=')}")
    if issubclass(cls, schemes.Method) and cls is not Topology:
        start = [f"losses.{kind}.{key}={value}" for kind, keys in cls.losses.items() for key, value in keys.items()]
        lines += ["  and the keys of teacher (--help teacher)"] * cls.uses_teacher
        lines += [
            f"  and losses (--help losses), by default {' '.join(start).replace('.name=', '=') or 'none'}"
        ] * cls.uses_losses
    return "\n".join(lines)


def _rows(prefix: str, cls: type) -> list[str]:
    """Return a line for each key of a class of options: its default, its meaning and what is allowed."""
    return [_row(*key) for key in keys_of(prefix, cls)]


def keys_of(prefix: str, cls: type) -> Iterator[Key]:
    """Yield the documented keys of a class of options."""
    if cls is Config:
        yield Key("experiment", "", "a recipe to start from", "NAME or PATH")
        yield Key("method", "", "short for scheme.method", "--help scheme lists them")
    for field in dataclasses.fields(cls):
        if meaning := description(cls, field):
            name = f"{prefix}.{field.name}" if prefix else field.name
            yield Key(name, _show(_default(field)), meaning, allowed(field, cls).text)


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
        return Rule(base.text + _bounds(bounds, "characters" if base.text == "text" else "of them"), base.words)
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


def _bounds(bounds: list[Any], what: str = "of them") -> str:
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
                words.append(f"at least {least} {what}")
            case annotated_types.MaxLen(max_length=most):
                words.append(f"at most {most} {what}")
    return " " + " and ".join(words) if words else ""


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not MISSING else None


def _show(value: Any) -> str:
    if value is None:
        return "null"
    if dataclasses.is_dataclass(value):
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _title(prefix: str, cls: type) -> str:
    doc = (cls.__doc__ or "").splitlines()[0]
    name = "FILE.py:NAME" if cls is OwnData else getattr(cls, "name", None)
    if cls in (Model, Teacher, Optim, Train):
        return f"{prefix}: {doc}"
    if prefix == "losses":
        return f"losses (KIND is response, feature or relation): {doc}"
    if prefix == "scheme":
        return f"scheme={name} method={cls.method}: {doc}"  # type: ignore[attr-defined]
    return f"{prefix}={name}: {doc}" if prefix else "whole run"


def _row(key: str, default: str, meaning: str, rule: str) -> str:
    head = f"  {key}={default}" if default else f"  {key}=..."
    return f"{head:<42} {meaning} [{rule}]"
