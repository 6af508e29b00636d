"""What each key may be and what it means: the text of `--help` and of every error about a value."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterator
from dataclasses import MISSING
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import annotated_types
from pydantic.fields import FieldInfo

from kdschemes.config import Config, Model, Optim, Teacher, Train, losses, schemes
from kdschemes.config.data import DATA
from kdschemes.config.schemes.custom import Topology

HELP_HEAD = """\
usage: run.py [KEY=VALUE ...]        (or: accelerate launch run.py [KEY=VALUE ...])

  run.py scheme=online                       two peers teach each other on scikit-learn's digits
  run.py scheme=offline teacher=resnet18_cifar scheme.alpha=0.9 losses.response.temperature=4
  run.py experiment=NAME                     a recipe of experiments/ (or a path: a run's config.yaml too)

GROUP=NAME chooses (scheme=, data=, model=, teacher=, losses.response=, ...); GROUP.KEY=VALUE sets. The same command
again goes on from its last checkpoint.
"""

LOSS_PREFIXES = tuple(f"losses.{kind}" for kind in losses.KINDS)


class Rule(NamedTuple):
    """What a value may be: in words, and the words to choose from where there are any."""

    text: str
    words: tuple[str, ...] = ()


def choices() -> Iterator[tuple[str, type]]:
    """Yield each class of options with the prefix of its keys, the whole `Config` first."""
    yield "", Config
    for methods in schemes.SCHEMES.values():
        for cls in methods.values():
            yield "scheme", cls
    yield "scheme", Topology
    for cls in DATA.values():
        yield "data", cls
    yield from (("model", Model), ("teacher", Teacher), ("optim", Optim), ("train", Train))
    yield "losses", losses.Losses
    for kind, table in losses.KINDS.items():
        for cls in table.values():
            yield f"losses.{kind}", cls


def help_text() -> str:
    """Return the text of `run.py --help`: every key of every choice with its default and meaning."""
    lines = [HELP_HEAD]
    shared = dataclasses.fields(losses.Ramp)
    previous = None
    for prefix, cls in choices():
        if cls is losses.NoLoss:
            continue
        title = _title(prefix, cls)
        if prefix != previous or title:
            lines.append(f"\n{title or prefix or 'whole run'}")
        previous = prefix
        if prefix == "losses":
            for kind_field in shared:
                rule = allowed(kind_field, losses.Ramp).text
                key = f"losses.KIND.{kind_field.name}"
                lines.append(_row(key, _show(_default(kind_field)), description(losses.Ramp, kind_field), rule))
        if not prefix:
            lines.append(_row("experiment", "", "a recipe to start from", "NAME or PATH"))
            lines.append(_row("method", "", "short for scheme.method", "see below"))
        for field in dataclasses.fields(cls):
            if field.name in ("name", "method") and get_origin(_hints(cls)[field.name]) is Literal:
                continue
            if dataclasses.is_dataclass(_default(field)) or (prefix in LOSS_PREFIXES and field in shared):
                continue
            key = f"{prefix}.{field.name}" if prefix else field.name
            lines.append(_row(key, _show(_default(field)), description(cls, field), allowed(field, cls).text))
    return "\n".join(lines) + "\n"


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
    if cls in (Model, Teacher, Optim, Train):
        return f"{prefix}: {doc}"
    if prefix == "losses":
        return f"losses (KIND is response, feature or relation): {doc}"
    if prefix == "scheme":
        return f"scheme={name} method={cls.method}: {doc}"  # type: ignore[attr-defined]
    return f"{prefix}={name}: {doc}" if prefix else ""


def _row(key: str, default: str, meaning: str, rule: str) -> str:
    head = f"  {key}={default}" if default else f"  {key}=..."
    return f"{head:<42} {meaning} [{rule}]"
