"""The keys of a study file: checked, flattened, and written as command-line arguments."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdschemes.config.losses import KINDS
from kdschemes.config.naming import in_line
from kdschemes.config.parse import read_yaml
from kdschemes.config.recipes import GROUPS
from kdschemes.config.renamed import RENAMED_STUDY_KEYS
from kdschemes.errors import UserError, shown, unknown
from kdschemes.study.published import Published, read_published

KEYS = (
    *("question", "base", "variants", "grid", "seeds", "prerequisites", "budget", "analyses", "baseline", "compare"),
    "published",
)

ANALYSIS_NAMES = (
    *("temperature_limit", "efficiency", "fidelity", "capacity", "sensitivity", "budgets", "missing_class"),
    *("collaborative", "hinton2015"),
)
"""Sections that a study may request in its report: each is a module of `kdschemes.report.analyses`."""

MOST_RUNS, MOST_KEYS = 4_000, 1_000

PREREQUISITES = "prerequisites"

REFERRING = ("teacher.checkpoint", "model.checkpoint")
"""Keys whose value may be `prerequisites.NAME`, or a list of such: that prerequisite with the same seed."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

PER_RUN = {"seed": "give seeds: [...]", "output_dir": "give it in base or on the command line"}
"""Keys that neither a variant, nor the grid, nor a run of `prerequisites` may set."""

CHOICES = (*(group for group in GROUPS if group not in ("losses", "train")), *(f"losses.{kind}" for kind in KINDS))
"""Keys that are short for their `.name`."""

Keys = dict[str, Any]
"""Values by dotted key."""


@dataclass(frozen=True, kw_only=True)
class StudyKeys:
    """Content of a study file. Without variants there is a single one, None, with no keys. `hours` is its budget."""

    question: str
    base: Keys
    variants: dict[str | None, Keys]
    grid: dict[str, list[Any]]
    seeds: list[int]
    prerequisites: dict[str, Keys] = field(default_factory=dict)
    hours: float | None = None
    analyses: tuple[str, ...] = ()
    baseline: str | None = None
    compare: tuple[tuple[str, str], ...] = ()
    published: tuple[Published, ...] = ()


def read_keys(path: Path, overrides: Sequence[str]) -> StudyKeys:
    """Read a study file and check its structure, and that base and overrides do not set grid keys or seeds.

    Raises:
        UserError: an unknown key, an empty list, a key that is set twice.
    """
    tree = _tree(path)
    question = tree.get("question")
    if not isinstance(question, str) or not question.strip():
        raise UserError("question is missing: state in one sentence what the study asks")
    base = _flat(tree.get("base") or {}, "base")
    variants = _bundles(tree, "variants") if "variants" in tree else {}
    grid = _grid(tree, variants)
    prerequisites = _bundles(tree, PREREQUISITES) if PREREQUISITES in tree else {}
    _check_shared(base, overrides, grid)
    _check_references(base, variants, grid, prerequisites)
    seeds = _seeds(tree)
    count = (max(1, len(variants)) * math.prod(map(len, grid.values())) + len(prerequisites)) * len(seeds)
    if count > MOST_RUNS:
        raise UserError(f"{count:,} runs: a study has at most {MOST_RUNS:,}; split it, or take values out of its grid")
    return StudyKeys(
        question=" ".join(question.split()),
        base=base,
        variants=dict[str | None, Keys](variants.items()) if variants else {None: {}},
        grid=grid,
        seeds=seeds,
        prerequisites=prerequisites,
        hours=_hours(tree),
        analyses=_analyses(tree),
        baseline=_baseline(tree),
        compare=_compare(tree),
        published=read_published(tree.get("published")),
    )


def referred(value: Any) -> list[str]:
    """Return the names of runs of `prerequisites` that the value of a key in `REFERRING` refers to."""
    words = value if isinstance(value, list) else [value]
    prefix = f"{PREREQUISITES}."
    return [word.removeprefix(prefix) for word in words if isinstance(word, str) and word.startswith(prefix)]


def in_words(keys: Mapping[str, Any], folders: Mapping[str, str]) -> tuple[str, ...]:
    """Return keys and values as arguments of `run.py`; each `prerequisites.NAME` becomes its folder."""

    def replaced(value: Any) -> Any:
        if isinstance(value, list):
            return [replaced(word) for word in value]
        names = referred(value)
        return folders.get(names[0], value) if names else value

    found = {key: replaced(value) if key in REFERRING else value for key, value in keys.items()}
    return tuple(f"{key}={in_line(value)}" for key, value in found.items())


def _check_references(
    base: Keys, variants: Mapping[str, Keys], grid: Mapping[str, list[Any]], prerequisites: Mapping[str, Keys]
) -> None:
    bundles = {"base": base} | {f"variants.{name}": keys for name, keys in variants.items()}
    bundles |= {f"{PREREQUISITES}.{name}": keys for name, keys in prerequisites.items()}
    given = [(f"{where}: {key}", keys[key]) for where, keys in bundles.items() for key in REFERRING if key in keys]
    given += [(f"grid: {key}", value) for key in REFERRING for value in grid.get(key, ())]
    for where, value in given:
        for word in value if isinstance(value, list) else [value]:
            old, _, name = str(word).partition(".")
            if old in RENAMED_STUDY_KEYS and name and not Path(str(word)).exists():
                raise UserError(f"{where}={shown(word)} is now {RENAMED_STUDY_KEYS[old]}.{name}")
        for name in referred(value):
            if not prerequisites:
                raise UserError(
                    f"{where}={PREREQUISITES}.{name}, but the study has no {PREREQUISITES}: define that run there"
                )
            if name not in prerequisites:
                raise unknown(f"run of {PREREQUISITES} in {where}", name, prerequisites)


def _check_shared(base: Keys, overrides: Sequence[str], grid: Mapping[str, Any]) -> None:
    if "seed" in base:
        raise UserError(f"base holds seed: {PER_RUN['seed']}")
    for word in overrides:
        key = word.partition("=")[0]
        if key == "seed" or key.partition(".")[0] in KEYS:
            raise UserError(f"{shown(word)}: the study file sets it; copy the file and change it there")
        if _same(key) in map(_same, grid):
            raise UserError(f"{shown(word)}: {key} is in the grid")
    for key in grid:
        if _same(key) in map(_same, base):
            raise UserError(f"{key} is both in grid and in base: keep one")


def _tree(path: Path) -> dict[str, Any]:
    tree = read_yaml(path, "the file")
    for key in tree:
        if key in RENAMED_STUDY_KEYS:
            raise UserError(f"{key} is now {RENAMED_STUDY_KEYS[key]}")
        if key not in KEYS:
            raise unknown("key", str(key), KEYS)
    return tree


def _flat(tree: Any, where: str, prefix: str = "") -> Keys:
    """Return the values of nested keys by dotted key."""
    if not isinstance(tree, Mapping):
        raise UserError(f"{where} must hold keys, as in a recipe, not {_shown(tree)}")
    flat: Keys = {}
    given: set[str] = set()
    for key, value in tree.items():
        name = f"{prefix}{key}"
        found = _flat(value, where, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
        for full, leaf in found.items():
            if _same(full) in given:
                raise UserError(f"{where} sets {shown(full)} twice")
            given.add(_same(full))
            flat[full] = leaf
    if len(flat) > MOST_KEYS:
        raise UserError(f"{where} sets {len(flat):,} keys, more than {MOST_KEYS:,}")
    return flat


def _shown(value: Any) -> str:
    return shown(in_line(value))


def _same(key: str) -> str:
    """Return the canonical form of a key with several spellings: `method`, `scheme.method`; `data`, `data.name`."""
    return "scheme.method" if key == "method" else f"{key}.name" if key in CHOICES else key


def _bundles(tree: Mapping[str, Any], where: str) -> dict[str, Keys]:
    """Return the named bundles of keys in `variants` or `prerequisites`."""
    given = tree[where]
    if not isinstance(given, Mapping) or not given:
        raise UserError(f"{where} is empty: name at least one bundle of keys, or leave it out")
    bundles: dict[str, Keys] = {}
    for name, keys in given.items():
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{where}: {_shown(name)} is not a name; put quotes around it")
        if where == PREREQUISITES and not NAME.fullmatch(name):
            raise UserError(
                f"{where}: name '{shown(name)}' with letters, digits, '.', '_' and '-' only: others refer to it"
            )
        bundles[name] = _flat(keys if keys is not None else {}, f"{where}.{name}")
        for key in PER_RUN.keys() & bundles[name].keys():
            raise UserError(f"{where}.{name} holds {key}: {PER_RUN[key]}")
    return bundles


def _grid(tree: Mapping[str, Any], variants: Mapping[str, Keys]) -> dict[str, list[Any]]:
    if "grid" not in tree:
        return {}
    grid = _flat(tree["grid"] if tree["grid"] is not None else {}, "grid")
    if not grid:
        raise UserError("grid is empty: give at least one key with its values, or leave it out")
    for key, values in grid.items():
        if key in PER_RUN:
            raise UserError(f"grid holds {key}: {PER_RUN[key]}")
        if not isinstance(values, list) or not values:
            raise UserError(f"grid.{key} must be a list of values, [a, b, ...], not {_shown(values)}")
        for name, keys in variants.items():
            if _same(key) in map(_same, keys):
                raise UserError(f"{key} is both in grid and in variants.{name}: keep one")
    return grid


def _seeds(tree: Mapping[str, Any]) -> list[int]:
    seeds = tree.get("seeds", [0])
    whole = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not whole or not seeds:
        raise UserError(f"seeds must be a list of whole numbers from 0 on, [0, 1, ...], not {_shown(seeds)}")
    if len(seeds) > MOST_RUNS:
        raise UserError(f"{len(seeds):,} seeds: a study has at most {MOST_RUNS:,} runs")
    _check_repeats("seeds", seeds)
    return list(seeds)


def _check_repeats(key: str, values: list[Any]) -> None:
    for value in values:
        if values.count(value) > 1:
            raise UserError(f"{key} holds {shown(value)} twice")


def _hours(tree: Mapping[str, Any]) -> float | None:
    if "budget" not in tree:
        return None
    budget = tree["budget"]
    if not isinstance(budget, Mapping) or set(budget) != {"hours"}:
        raise UserError(f"budget must be {{hours: X}}, not {_shown(budget)}")
    hours = budget["hours"]
    if type(hours) not in (int, float) or not math.isfinite(hours) or hours <= 0:
        raise UserError(f"budget.hours must be a number above 0, not {_shown(hours)}")
    return float(hours)


def _analyses(tree: Mapping[str, Any]) -> tuple[str, ...]:
    names = tree.get("analyses", [])
    if not isinstance(names, list):
        raise UserError(f"analyses must be a list of names, [a, b, ...], not {_shown(names)}")
    for name in names:
        if name not in ANALYSIS_NAMES:
            raise unknown("analysis", str(name), ANALYSIS_NAMES)
    _check_repeats("analyses", names)
    return tuple(names)


def _baseline(tree: Mapping[str, Any]) -> str | None:
    label = tree.get("baseline")
    if label is not None and not isinstance(label, str):
        raise UserError(f"baseline must be the label of a point, as text, not {_shown(label)}; put quotes around it")
    return label


def _compare(tree: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return the planned comparisons, pairs of labels of points: what is compared, and with what."""
    pairs = tree.get("compare", [])
    for pair in pairs if isinstance(pairs, list) else [None]:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(label, str) for label in pair):
            raise UserError(f"compare must be a list of pairs of labels, [[a, b], ...], not {_shown(pairs)}")
        if pair[0] == pair[1]:
            raise UserError(f"compare holds {_shown(pair)}: nothing is compared with itself")
    _check_repeats("compare", pairs)
    return tuple((first, second) for first, second in pairs)
