"""Everything that the losses' test files declare, found by their names: a new loss is entered in no list."""

from __future__ import annotations

import pkgutil
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from kdschemes.config.losses import KINDS
from kdschemes.losses.build import MODULES
from tests.losses.cases import Flags

DEFAULTS = {name: (kind, options) for kind, table in KINDS.items() for name, options in table.items() if name != "none"}


def function_or_class(options: type) -> Any:
    """What computes the loss: a function of logits, or the class of its module."""
    made = MODULES[options]
    return made.args[0] if isinstance(made, partial) else made


def file_of(options: type) -> str:
    """`tests.losses.response.test_kd` for `kdschemes.losses.response.kd`."""
    package, _, name = function_or_class(options).__module__.replace("kdschemes", "tests", 1).rpartition(".")
    return f"{package}.test_{name}"


def _files() -> dict[str, ModuleType]:
    names = {file_of(options) for _, options in DEFAULTS.values()}
    for kind in KINDS:
        folder = import_module(f"tests.losses.{kind}")
        names |= {m.name for m in pkgutil.iter_modules(folder.__path__, f"{folder.__name__}.") if ".test_" in m.name}
    return {name: import_module(name) for name in sorted(names) if find_spec(name)}


FILES = _files()


def _collected(name: str, kind: type | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for file in FILES.values():
        for key, entry in getattr(file, name, {}).items():
            if kind is None or isinstance(entry, kind):
                assert key not in found, f"{key} is in two files"
                found[key] = entry
    return found


def cases(kind: type) -> dict[str, Any]:
    """The cases of one class of `tests.losses.cases` by name."""
    return _collected("CASES", kind)


REFERENCES = _collected("REFERENCES")
OPTIONS = [options() for _, options in DEFAULTS.values()] + [
    options for file in FILES.values() for options in getattr(file, "OPTIONS", [])
]
"""The defaults of every loss and all further options."""


def flags(options: Any) -> Flags:
    found = getattr(FILES.get(file_of(type(options))), "FLAGS", Flags())
    assert isinstance(found, Flags)
    return found


def kind_of(options: Any) -> str:
    return DEFAULTS[options.name][0]
