"""Recipes: files of keys, in YAML or as the literal `RECIPE` of a Python topology; and YAML tables of recipes."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from kdschemes.config.losses import KINDS, loss_named
from kdschemes.config.naming import Tree
from kdschemes.config.parse import check_plain, read_file, read_yaml
from kdschemes.config.paths import expand
from kdschemes.errors import UserError, nearest, shown, unknown

GROUPS = ("scheme", "data", "model", "teacher", "losses", "optim", "train")

MOST_PARTS = 4
"""Of a key: teacher.optim.kwargs.betas."""

RECIPES_SHOWN = 12
TABLE_KEYS = ("keys", "columns", "rows")
COLUMN_KEYS = ("keys", "published")
ROW_KEYS = ("about", "source", "published", "keys", "cells")
TOPOLOGY, TOPOLOGIES, STUDIES, SWEEPS = "topology", "topologies", "studies", "sweeps"


def read_recipe(name: Any, recipes: Path) -> Tree:
    """Return the keys of a recipe: `NAME` in the folder, `TABLE/ROW_COLUMN` of a table there, or a file's path.

    Raises:
        UserError: it does not exist, cannot be read, or has no keys.
    """
    if (code := topology_file(name, recipes)) is not None:
        return _read_topology(code)
    path = Path(expand(str(name)))
    if path.suffix not in (".yaml", ".yml"):
        found, table = recipes / f"{name}.yaml", recipes / f"{path.parent}.yaml"
        if not found.is_file() and table.is_file():
            tree = _read_table(table, read_yaml(table, f"recipe {table}")).get(path.name)
            if tree is not None:
                return tree
        if not found.is_file():
            raise _unknown_recipe(str(name), known_recipes(recipes), recipes)
        path = found
    tree = read_yaml(path, f"recipe {shown(path)}")
    if _is_table(tree):
        raise UserError(f"recipe {path} is a table of recipes: choose one as {path.stem}/ROW_COLUMN")
    return _nested(tree)


def topology_file(name: Any, recipes: Path) -> Path | None:
    """Return the Python file that the name of a recipe chooses; None if it chooses data, or nothing."""
    path = Path(expand(str(name)))
    if path.suffix == ".py":
        return path
    data, code = recipes / f"{name}.yaml", recipes / f"{name}.py"
    return code if path.suffix not in (".yaml", ".yml") and code.is_file() and not data.is_file() else None


def known_recipes(recipes: Path) -> list[str]:
    """Return the names of the recipes in a folder, including those in tables."""
    names = [str(file.relative_to(recipes).with_suffix("")) for file in recipes.glob(f"{TOPOLOGIES}/*.py")]
    for file in recipes.rglob("*.yaml"):
        place = file.relative_to(recipes)
        if place.parts[0] in (STUDIES, SWEEPS):
            continue
        name = str(place.with_suffix(""))
        try:
            tree = read_yaml(file)
            names += [f"{name}/{own}" for own in _read_table(file, tree)] if _is_table(tree) else [name]
        except UserError:
            names.append(name)
    return sorted(names)


def _is_table(tree: Mapping[str, Any]) -> bool:
    return "rows" in tree


def _read_table(path: Path, tree: Mapping[str, Any]) -> dict[str, Tree]:
    """Return the recipes of a table by name, `ROW_COLUMN`.

    Later wins: the keys of the table, the row, the column, the cell. A row's `published` has a number for each column;
    null means that there is no recipe.
    """
    try:
        _check_keys("the table", tree, TABLE_KEYS)
        columns = {str(name): column for name, column in _mapping("columns", tree.get("columns")).items()}
        for name, column in columns.items():
            _check_keys(f"column {name}", column, COLUMN_KEYS)
        made: dict[str, Tree] = {}
        for name, row in _mapping("rows", tree["rows"]).items():
            _check_keys(f"row {name}", row, ROW_KEYS)
            cells = row.get("cells", {})
            _check_keys(f"cells of row {name}", cells, columns)
            published = row.get("published", [True] * len(columns))
            if not isinstance(published, list) or len(published) != len(columns):
                raise UserError(f"published of row {name} needs a value for each of the {len(columns)} columns")
            for (column, of_column), number in zip(columns.items(), published, strict=True):
                if number is not None:
                    recipe = made[f"{name}_{column}"] = {}
                    for keys in (*(part.get("keys", {}) for part in (tree, row, of_column)), cells.get(column, {})):
                        merge(recipe, _nested(_mapping(f"an entry of {name}_{column}", keys)))
    except UserError as error:
        raise UserError(f"recipe {path}: {error}") from None
    return made


def _mapping(of: str, value: Any) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{of} has no keys")
    return value


def _check_keys(of: str, value: Any, known: Collection[str]) -> None:
    for key in _mapping(of, value):
        if key not in known:
            raise unknown(f"key of {of}", str(key), known)


def _read_topology(path: Path) -> Tree:
    """Read a Python recipe without running it: its path, its digest, and the keys in its literal `RECIPE`."""
    text = read_file(path, f"recipe {shown(path)}")
    try:
        parsed = ast.parse(text, filename=str(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"recipe {path} is not Python (line {getattr(error, 'lineno', None) or 1})") from None
    tree: Tree = {}
    for statement in parsed.body:
        if isinstance(statement, ast.Assign) and [ast.unparse(target) for target in statement.targets] == ["RECIPE"]:
            try:
                tree = check_plain(ast.literal_eval(statement.value))
            except (ValueError, TypeError, RecursionError, MemoryError):
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
    """Return `a.b=value` as nested data; `GROUP=value` sets `GROUP.name`, also in `losses={KIND: value}`."""
    if key == "method":
        key = "scheme.method"
    parts = key.split(".")
    if len(parts) > MOST_PARTS:
        raise UserError(f"unknown key '{shown(key)}' (--help all lists all keys)")
    if key in (*GROUPS, "teacher.optim", *(f"losses.{kind}" for kind in KINDS)) and not isinstance(value, Mapping):
        if key == "losses" and (found := loss_named(str(value))):
            raise UserError(f"losses={value}: {value} is a {found[0]} loss, write losses.{found[0]}={value}")
        if key in ("losses", "train"):
            raise UserError(f"{key}={shown(value)}: give its keys, as {key}.KEY=VALUE")
        parts.append("name")
    if key == "losses":
        value = {
            kind: {"name": own} if kind in KINDS and not isinstance(own, Mapping) else own
            for kind, own in value.items()
        }
    for part in reversed(parts):
        value = {part: value}
    tree: Tree = value
    return tree


def merge(into: Tree, update: Mapping[Any, Any]) -> None:
    """Merge `update` into nested data in place."""
    for key, value in update.items():
        key = str(key)
        if isinstance(value, Mapping):
            if not isinstance(into.get(key), dict):
                into[key] = {}
            merge(into[key], value)
        else:
            into[key] = value


def _unknown_recipe(name: str, known: Sequence[str], recipes: Path) -> UserError:
    """Return the error for an unknown recipe; it lists only the closest names if there are many recipes."""
    if not known:
        return UserError(f"no recipes in {recipes}")
    if len(known) <= RECIPES_SHOWN:
        return unknown("experiment", name, known)
    closest = ", ".join(get_close_matches(name, known, n=RECIPES_SHOWN, cutoff=0.0))
    return UserError(
        f"unknown experiment '{shown(name)}'{nearest(name, known)} "
        f"(the closest of the {len(known)} in {recipes}: {closest})"
    )
