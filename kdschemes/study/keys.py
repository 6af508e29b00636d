"""The keys of a study file: checked, flattened, and written as words of a command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kdschemes.config.load import GROUPS
from kdschemes.config.losses import KINDS
from kdschemes.errors import UserError, unknown

KEYS = ("question", "base", "variants", "grid", "seeds")
PER_RUN = {"seed": "give seeds: [...]", "output": "give it in base or on the command line"}
"""Keys that neither a variant nor the grid may set."""

CHOICES = (*(group for group in GROUPS if group not in ("losses", "train")), *(f"losses.{kind}" for kind in KINDS))
"""Keys that stand for their `.name`."""

Keys = dict[str, Any]
"""Values by dotted key."""


@dataclass(frozen=True, kw_only=True)
class StudyKeys:
    """What a study file holds. Without variants there is one, None, that holds no keys."""

    question: str
    base: Keys
    variants: dict[str | None, Keys]
    grid: dict[str, list[Any]]
    seeds: list[int]


def read_keys(path: Path, overrides: Sequence[str]) -> StudyKeys:
    """Read a study file and check its shape, and that base and overrides leave grid and seeds to it.

    Raises:
        UserError: an unknown key, an empty list, a key that is set twice.
    """
    tree = _tree(path)
    question = tree.get("question")
    if not isinstance(question, str) or not question.strip():
        raise UserError("question is missing: say in one sentence what the study asks")
    base = _flat(tree.get("base") or {}, "base")
    variants = _variants(tree)
    grid = _grid(tree, variants)
    _check_shared(base, overrides, grid)
    return StudyKeys(question=" ".join(question.split()), base=base, variants=variants, grid=grid, seeds=_seeds(tree))


def in_line(value: Any) -> str:
    """Return a value as it is written in a study file or on a command line, in one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def in_words(keys: Mapping[str, Any]) -> tuple[str, ...]:
    """Return keys and values as `run.py` takes them."""
    return tuple(f"{key}={in_line(value)}" for key, value in keys.items())


def _check_shared(base: Keys, overrides: Sequence[str], grid: Mapping[str, Any]) -> None:
    if "seed" in base:
        raise UserError(f"base holds seed: {PER_RUN['seed']}")
    for word in overrides:
        key = word.partition("=")[0]
        if key == "seed":
            raise UserError(f"{word}: the seeds are the study's own")
        if _same(key) in map(_same, grid):
            raise UserError(f"{word}: the grid goes over {key}")
    for key in grid:
        if _same(key) in map(_same, base):
            raise UserError(f"{key} is both in grid and in base: keep one")


def _tree(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read: {getattr(error, 'strerror', None) or 'not text'}") from None
    except yaml.YAMLError as error:
        raise UserError(f"not YAML (line {getattr(getattr(error, 'problem_mark', None), 'line', 0) + 1})") from None
    if not isinstance(tree, dict):
        raise UserError(f"holds no keys (it has {', '.join(KEYS)})")
    for key in tree:
        if key not in KEYS:
            raise unknown("key", str(key), KEYS)
    return tree


def _flat(tree: Any, where: str, prefix: str = "") -> Keys:
    """Return the values of nested keys by dotted key."""
    if not isinstance(tree, Mapping):
        raise UserError(f"{where} must hold keys, as in a recipe, not {in_line(tree)}")
    flat: Keys = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        found = _flat(value, where, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
        for full, leaf in found.items():
            if _same(full) in map(_same, flat):
                raise UserError(f"{where} sets {full} twice")
            flat[full] = leaf
    return flat


def _same(key: str) -> str:
    """Return the one form of a key that may be written in several: `method`, `scheme.method`; `data`, `data.name`."""
    return "scheme.method" if key == "method" else f"{key}.name" if key in CHOICES else key


def _variants(tree: Mapping[str, Any]) -> dict[str | None, Keys]:
    if "variants" not in tree:
        return {None: {}}
    given = tree["variants"]
    if not isinstance(given, Mapping) or not given:
        raise UserError("variants is empty: name at least one bundle of keys, or leave it out")
    variants: dict[str | None, Keys] = {}
    for name, keys in given.items():
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"variants: {in_line(name)} is no name; put quotes around it")
        variants[name] = _flat(keys if keys is not None else {}, f"variants.{name}")
        for key in PER_RUN.keys() & variants[name].keys():
            raise UserError(f"variants.{name} holds {key}: {PER_RUN[key]}")
    return variants


def _grid(tree: Mapping[str, Any], variants: Mapping[str | None, Keys]) -> dict[str, list[Any]]:
    if "grid" not in tree:
        return {}
    grid = _flat(tree["grid"] if tree["grid"] is not None else {}, "grid")
    if not grid:
        raise UserError("grid is empty: give at least one key with its values, or leave it out")
    for key, values in grid.items():
        if key in PER_RUN:
            raise UserError(f"grid holds {key}: {PER_RUN[key]}")
        if not isinstance(values, list) or not values:
            raise UserError(f"grid.{key} must be a list of values, [a, b, ...], not {in_line(values)}")
        for name, keys in variants.items():
            if _same(key) in map(_same, keys):
                raise UserError(f"{key} is both in grid and in variants.{name}: keep one")
    return grid


def _seeds(tree: Mapping[str, Any]) -> list[int]:
    seeds = tree.get("seeds", [0])
    whole = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not whole or not seeds:
        raise UserError(f"seeds must be a list of whole numbers from 0 on, [0, 1, ...], not {in_line(seeds)}")
    for seed in seeds:
        if seeds.count(seed) > 1:
            raise UserError(f"seeds holds {seed} twice")
    return list(seeds)
