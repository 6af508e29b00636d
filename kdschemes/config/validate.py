"""Build options from nested data; an error names the key, the value and what is allowed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from kdschemes.config.help import allowed, choices
from kdschemes.config.losses import KINDS
from kdschemes.config.renamed import renamed_key, renamed_value
from kdschemes.config.unknown import no_such
from kdschemes.errors import UserError, nearest, shown

SMALLEST, LARGEST = 1e-30, 1e30

RANGE = f"must be a finite number, 0 or from {SMALLEST:g} to {LARGEST:g} in size"
"""What every number with a fraction must be, so that it is a float32."""


def choose(table: Mapping[str, Any], name: Any, kind: str) -> Any:
    """Return the entry of a table; an unknown name raises an error that lists the choices."""
    if not isinstance(name, str) or name not in table:
        raise no_such(kind, name, table)
    return table[name]


def make(cls: type, tree: Mapping[str, Any], prefix: str) -> Any:
    """Return an instance of an options class; an unknown key raises an error."""
    fields = {field.name for field in dataclasses.fields(cls)}
    for key in tree:
        if key not in fields:
            raise unknown_key(f"{prefix}.{key}", holder=tree.get("name", getattr(cls, "name", "")))
    return validate(cls, tree, prefix)


def make_loss(kind: str, tree: Mapping[str, Any]) -> Any:
    """Return the options of the loss named in a tree, which must be of this kind."""
    key = f"losses.{kind}"
    return make(choose(KINDS[kind], tree.get("name", "none"), key), tree, key)


CURES = {
    ("scheme.peers", "1"): "; a network alone is scheme=supervised",
    ("device", "gpu"): "; did you mean 'cuda'?",
    ("device", "cuda:0"): "; choose a GPU by CUDA_VISIBLE_DEVICES, with device=cuda",
}
"""What to say of a value that is not allowed, where the nearest word is not meant."""


@cache
def _adapter(cls: type) -> Any:
    return TypeAdapter(cls)


def validate(cls: type, values: Mapping[str, Any], prefix: str) -> Any:
    """Return a validated instance of an options class.

    Raises:
        UserError: a value has the wrong type or is out of range; the message says what is allowed.
    """
    try:
        made = _adapter(cls).validate_python(dict(values))
    except ValidationError as error:
        problems = error.errors()
        for problem in problems:
            key = str(problem["loc"][0])
            if problem["type"] == "value_error":  # from the option's own check
                raise UserError(f"{_join(prefix, key)}={shown(values[key])}: {problem['ctx']['error']}") from None
        raise _not_allowed(cls, str(problems[0]["loc"][0]), values, prefix) from None
    for key, value in values.items():
        if not _all_in_range(getattr(made, key)):
            raise UserError(f"{_join(prefix, key)}={shown(value)}: {RANGE}")
        if _truth_taken_for_number(value, getattr(made, key)):
            raise _not_allowed(cls, key, values, prefix)
    return made


def _not_allowed(cls: type, key: str, values: Mapping[str, Any], prefix: str) -> UserError:
    rule = allowed(next(field for field in dataclasses.fields(cls) if field.name == key))
    value = values[key]
    if new := renamed_value(_join(prefix, key), value):
        return UserError(f"{_join(prefix, key)}={shown(value)} is now {_join(prefix, key)}={new}")
    hint = nearest(str(value), rule.words) if rule.words else ""
    hint = CURES.get((_join(prefix, key), str(value)), hint)
    if "text" in rule.text and "number" not in rule.text and not isinstance(value, str | list | Mapping | None):
        hint = f"""; quote it twice: '"{shown(value)}"'"""
    given = "null" if value is None else str(value).lower() if isinstance(value, bool) else shown(value)
    return UserError(f"{_join(prefix, key)}={given} is not allowed{hint} (must be {rule.text})")


def _all_in_range(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_all_in_range, value))
    return not isinstance(value, float) or value == 0 or SMALLEST <= abs(value) <= LARGEST


def _truth_taken_for_number(given: Any, taken: Any) -> bool:
    if isinstance(given, list) and isinstance(taken, list):
        return any(map(_truth_taken_for_number, given, taken))
    return isinstance(given, bool) and not isinstance(taken, bool)


def unknown_key(key: str, holder: str = "") -> UserError:
    """Return the error for a key that does not exist, or does not exist for `holder`."""
    if new := renamed_key(key):
        return UserError(f"{key} is now {new}")
    known = all_keys()
    leaf = key.rpartition(".")[2]
    same_leaf = [other for other in known if other.rpartition(".")[2] == leaf]
    where = f" for {key.rpartition('.')[0]}={holder}" if holder and key in known else ""
    if key in known:
        return UserError(
            f"key '{shown(key)}' does not exist{where} (--help {key.rpartition('.')[0]} lists the choices)"
        )
    same = "' or '".join(same_leaf[:3])
    suggestion = f"; did you mean '{same}'?" if same else nearest(key, known)
    if not suggestion:
        by_leaf = {other.rpartition(".")[2]: other for other in known}
        close = nearest(leaf, by_leaf)
        suggestion = close.replace(close.split("'")[1], by_leaf[close.split("'")[1]]) if close else ""
    return UserError(f"unknown key '{shown(key)}'{suggestion} (--help all lists all keys)")


def _join(prefix: str, key: str) -> str:
    return f"{prefix}.{key}" if prefix else key


def all_keys() -> dict[str, dataclasses.Field[Any]]:
    """Return every key of every choice, as typed on the command line, with its dataclass field."""
    keys: dict[str, dataclasses.Field[Any]] = {}
    for prefix, cls in choices():
        for field in dataclasses.fields(cls):
            keys.setdefault(f"{prefix}.{field.name}" if prefix else field.name, field)
    return keys
