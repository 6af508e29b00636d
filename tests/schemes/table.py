"""What the test files of the methods, `tests/schemes/SCHEME/test_METHOD.py`, declare, found by their names.

Only the first of these names is required:

FORMULA     the total of a step, computed independently of the package
EXACT       overrides, other than the defaults, under which the total is compared with the formula
VARIANTS    overrides, other than the defaults, for the checks that every method passes
REFUSED     architectures that the method refuses, with a part of the message
REFERENCES  the functions that are compared with the recorded values of `tests/reference`
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import Any

from kdschemes.config.schemes import SCHEMES
from tests.schemes import offline, online, self_distillation, supervised, test_custom
from tests.schemes.cases import DEFAULTS, METHODS
from tests.schemes.formulas import Formula, Reference

FOLDERS = {"supervised": supervised, "offline": offline, "online": online, "self": self_distillation}
assert FOLDERS.keys() == SCHEMES.keys()


def _modules() -> dict[str, ModuleType]:
    """Import the test files of the schemes, by `SCHEME-METHOD`, or `SCHEME-MODULE` for a module that methods share."""
    return {
        f"{scheme}-{found.name.removeprefix('test_')}": importlib.import_module(f"{folder.__name__}.{found.name}")
        for scheme, folder in FOLDERS.items()
        for found in pkgutil.iter_modules(folder.__path__)
        if found.name.startswith("test_")
    }


def _collect(table: str) -> dict[str, Any]:
    """Merge the tables of this name of all test files."""
    merged: dict[str, Any] = {}
    for module in (*MODULES.values(), test_custom):
        entries = getattr(module, table, {})
        assert not merged.keys() & entries.keys(), f"{module.__name__} repeats a name of another {table}"
        merged |= entries
    return merged


MODULES = _modules()
FORMULAS: dict[str, Formula] = {
    name: module.FORMULA for name, module in MODULES.items() if hasattr(module, "FORMULA")
} | test_custom.FORMULAS
"""By `SCHEME-METHOD`, and `topology-NAME` for the shipped topologies."""
EXACT: dict[str, list[str]] = DEFAULTS | _collect("EXACT")
VARIANTS: dict[str, list[str]] = DEFAULTS | _collect("VARIANTS")
REFUSED: dict[tuple[str, str], str] = {
    (name, architecture): words
    for name in METHODS
    for architecture, words in getattr(MODULES.get(name), "REFUSED", {}).items()
}
"""By `SCHEME-METHOD` and architecture."""
REFERENCES: dict[str, Reference] = _collect("REFERENCES")
