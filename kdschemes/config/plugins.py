"""Plugins: Python that adds methods, losses, networks and data sets to the tables. Nothing here imports torch.

A plugin is a file or `MODULE:FUNCTION` of the key `plugins`, or an entry point of an installed package in the group
`kdschemes`. Entry points are loaded where a name is unknown, so that they cost nothing otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from kdschemes.config.code import DIGITS, CodeRefused, code_digest, load_code, parse_code, refused
from kdschemes.errors import UserError, first_line, shown

GROUP = "kdschemes"

_LOADED: set[tuple[str, str]] = set()
_LOADING: list[dict[str, str]] = []
_ORIGINS: dict[str, dict[str, str]] = {}


def load_plugins(names: Any, digests: Mapping[str, str]) -> None:
    """Load the plugins that a configuration names, each once; `digests` are those that it recorded.

    Raises:
        CodeRefused: the user did not allow one.
        UserError: something else is named, or a plugin fails.
    """
    given = [str(name) for name in (names if isinstance(names, list) else [names] if names is not None else [])]
    codes = [("plugin", code) for name in given if (code := parse_code(name)) is not None]
    if not {*given} <= {name for name, _ in _LOADED} and (found := refused(codes)):
        raise CodeRefused(found)
    for name in given:
        load_plugin(name, digests.get(name, "") if isinstance(digests, Mapping) else "")


def load_plugin(name: str, digest: str = "") -> None:
    """Load a plugin by its name in `plugins`; `digest` is how that of its file must begin."""
    code = parse_code(name)
    if code is None or (code.is_file and code.name is not None):
        raise UserError(f"plugins={shown(name)}: name a file FILE.py, or a function as MODULE:FUNCTION")
    found = code_digest(code)[:DIGITS]
    if (name, found) in _LOADED and found.startswith(digest):
        return
    with _loading({name: found}):
        loaded = load_code(code, "plugin", digest)
        if code.name is not None:
            loaded()
    _LOADED.add((name, found))


@cache
def load_installed() -> bool:
    """Load the plugins of installed packages, once; return whether there are any.

    Raises:
        UserError: one cannot be loaded.
    """
    found = entry_points(group=GROUP)
    for point in found:
        _load_installed(point)
    return bool(found)


def _load_installed(point: EntryPoint) -> None:
    try:
        with _loading({}):
            loaded = point.load()
            if point.attr:
                loaded()
    except Exception as error:
        package = point.dist.name if point.dist is not None else point.value
        why = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"the plugin {point.name} of the package {package} cannot be loaded ({why})") from error


@contextmanager
def _loading(origin: dict[str, str]) -> Iterator[None]:
    _LOADING.append(origin)
    try:
        yield
    finally:
        _LOADING.pop()


def register(table: MutableMapping[str, Any], name: Any, value: Any, what: str, others: Sequence[Any] = ()) -> None:
    """Add an entry to a table. An entry of the user's with the same name and definition is replaced, as in a notebook.

    Raises:
        UserError: the name is no text, or taken in the table or in one of `others`.
    """
    if not isinstance(name, str) or not name.replace("-", "_").replace(".", "_").isidentifier():
        raise UserError(
            f"{what} '{shown(name)}': a name has letters, digits, '_', '.' and '-', and begins with a letter"
        )
    for each in (table, *others):
        taken = each.get(name)
        if taken is not None and (each is not table or not _replaces(value, taken)):
            raise UserError(f"{what} {name} is taken by {taken.__module__}.{taken.__qualname__}: choose another name")
    table[name] = value
    _ORIGINS[name] = _LOADING[-1] if _LOADING else {}


def origin(name: str) -> dict[str, str]:
    """Return the plugin of the key `plugins` that registered a name, with its digest; {} if none did."""
    return _ORIGINS.get(name, {})


def needed(plugins: list[str] | None, *names: str) -> list[str] | None:
    """Return the plugins, or None if they register none of the names, for a run that uses no other of their names."""
    return plugins if any(map(origin, names)) else None


def _replaces(new: Any, old: Any) -> bool:
    ours = old.__module__.partition(".")[0] == __name__.partition(".")[0]
    return not ours and getattr(new, "__qualname__", None) == getattr(old, "__qualname__", "")
