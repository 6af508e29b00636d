"""Recipes: files of keys, in YAML or as the literal `RECIPE` of a topology in Python."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from kdschemes.config.losses import KINDS
from kdschemes.config.naming import Tree
from kdschemes.errors import UserError, nearest, unknown

GROUPS = ("scheme", "data", "model", "teacher", "losses", "optim", "train")

RECIPES_SHOWN = 12

TOPOLOGY, TOPOLOGIES, STUDIES, SWEEPS = "topology", "topologies", "studies", "sweeps"


def read_recipe(name: Any, recipes: Path) -> Tree:
    """Return the keys of the recipe `NAME` of a folder, or of a file.

    Raises:
        UserError: it is not there, cannot be read, or holds no keys.
    """
    path = Path(str(name))
    if path.suffix not in (".yaml", ".yml", ".py"):
        found = [place for place in (recipes / f"{name}.yaml", recipes / f"{name}.py") if place.is_file()]
        if not found:
            named = recipes.rglob("*.yaml")
            files = [file for file in named if file.relative_to(recipes).parts[0] not in (STUDIES, SWEEPS)]
            files += recipes.glob(f"{TOPOLOGIES}/*.py")
            known = sorted(str(p.relative_to(recipes).with_suffix("")) for p in files)
            raise _unknown_recipe(str(name), known, recipes)
        path = found[0]
    if path.suffix == ".py":
        return _read_topology(path)
    try:
        tree = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {path} cannot be read: {getattr(error, 'strerror', None) or 'not text'}") from None
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", 0) + 1
        raise UserError(f"recipe {path} is not YAML (line {line})") from None
    if not isinstance(tree, dict):
        raise UserError(f"recipe {path} holds no keys")
    return _nested(tree)


def _read_topology(path: Path) -> Tree:
    """Read a recipe in Python without running it: where it is, what it is, and the keys in its literal `RECIPE`."""
    try:
        text = path.read_bytes()
        parsed = ast.parse(text, filename=str(path))
    except OSError as error:
        raise UserError(f"recipe {path} cannot be read: {error.strerror or error}") from None
    except (SyntaxError, ValueError) as error:
        raise UserError(f"recipe {path} is not Python (line {getattr(error, 'lineno', None) or 1})") from None
    tree: Tree = {}
    for statement in parsed.body:
        if isinstance(statement, ast.Assign) and [ast.unparse(target) for target in statement.targets] == ["RECIPE"]:
            try:
                tree = ast.literal_eval(statement.value)
            except ValueError:
                tree = {}
            if not tree or not isinstance(tree, dict):
                raise UserError(f"RECIPE in {path} must be a dictionary of keys and plain values") from None
    scheme = {"name": TOPOLOGY, "method": path.stem, "file": str(path)}
    nested = _nested(tree)
    merge(nested, {"scheme": scheme | {"digest": hashlib.sha256(text).hexdigest()[:16]}})
    return nested


def _nested(tree: Mapping[Any, Any]) -> Tree:
    nested: Tree = {}
    for key, value in tree.items():
        merge(nested, nest(str(key), value))
    return nested


def nest(key: str, value: Any) -> Tree:
    """Return `a.b=value` as nested data; a group alone names its choice."""
    if key == "method":
        key = "scheme.method"
    parts = key.split(".")
    if (key in GROUPS or key in {f"losses.{kind}" for kind in KINDS}) and not isinstance(value, Mapping):
        if key in ("losses", "train"):
            raise UserError(f"{key}={value}: give its keys, as {key}.KEY=VALUE")
        parts.append("name")
    for part in reversed(parts):
        value = {part: value}
    tree: Tree = value
    return tree


def merge(into: Tree, update: Mapping[Any, Any]) -> None:
    """Put `update` into nested data; what it does not name stays."""
    for key, value in update.items():
        key = str(key)
        if isinstance(value, Mapping):
            if not isinstance(into.get(key), dict):
                into[key] = {}
            merge(into[key], value)
        else:
            into[key] = value


def _unknown_recipe(name: str, known: Sequence[str], recipes: Path) -> UserError:
    """Return the error for a recipe that is not there; of many recipes it names the closest only."""
    if not known:
        return UserError(f"no recipes in {recipes}")
    if len(known) <= RECIPES_SHOWN:
        return unknown("experiment", name, known)
    closest = ", ".join(get_close_matches(name, known, n=RECIPES_SHOWN, cutoff=0.0))
    return UserError(
        f"unknown experiment '{name}'{nearest(name, known)} (the closest of the {len(known)} in {recipes}: {closest})"
    )
