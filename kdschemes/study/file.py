"""Study files: a question, and variants x grid x seeds of a base, each a run that `run.py` could start by itself."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from kdschemes.config import Config
from kdschemes.config.load import GROUPS, STUDIES, load_config, run_name
from kdschemes.config.losses import KINDS
from kdschemes.errors import UserError, unknown

KEYS = ("question", "base", "variants", "grid", "seeds")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
PER_RUN = {"seed": "give seeds: [...]", "output": "give it in base or on the command line"}
"""Keys that neither a variant nor the grid may set."""

CHOICES = (*(group for group in GROUPS if group not in ("losses", "train")), *(f"losses.{kind}" for kind in KINDS))
"""Keys that stand for their `.name`."""

OPTIONAL = ("teacher", "losses")
"""Groups that some schemes do not use; a key of theirs that all runs share is left out where it has no effect."""

Keys = dict[str, Any]
"""Values by dotted key."""


@dataclass(frozen=True, kw_only=True)
class StudyRun:
    """One run of a study. `overrides` are the words after `run.py` that give `config`.

    A run whose network teaches others and that must be finished first is `earlier` and has none; `needs` are the names
    of the folders of such runs.
    """

    label: str
    seed: int
    config: Config
    variant: str | None = None
    grid: Mapping[str, Any]
    overrides: tuple[str, ...] = ()
    earlier: bool = False
    needs: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """Name of the run's folder in the study's output."""
        return run_name(self.config)


@dataclass(frozen=True, kw_only=True)
class StudyFile:
    """A study file, read and expanded. `overrides` are those of the command line, `output` holds all runs' folders."""

    path: Path
    question: str
    overrides: tuple[str, ...]
    runs: tuple[StudyRun, ...]

    @property
    def name(self) -> str:
        """Name of the study: the file's name without its ending."""
        return self.path.stem

    @property
    def output(self) -> Path:
        """Folder that holds the folders of the study and of its runs."""
        return Path(self.runs[0].config.output)


def known_studies(recipes: Path) -> list[str]:
    """Return the names of the studies in a folder of recipes."""
    return sorted(file.stem for file in (recipes / STUDIES).glob("*.yaml"))


def find_study_file(name: str, recipes: Path) -> Path:
    """Return the path of a study: `recipes/studies/NAME.yaml`, or the path to any such file.

    Raises:
        UserError: there is no such study, or its file's name cannot name a job.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = recipes / STUDIES / f"{name}.yaml"
        if not path.is_file():
            known = known_studies(recipes)
            raise unknown("study", name, known) if known else UserError(f"no studies in {recipes / STUDIES}")
    if not path.is_file():
        raise UserError(f"study {path} is not there")
    if not NAME.fullmatch(path.stem):
        raise UserError(f"study {path}: name the file with letters, digits, '.', '_' and '-' only: it names jobs")
    return path


def read_study(path: Path, overrides: Sequence[str], *, recipes: Path) -> StudyFile:
    """Read a study file and build the configuration of each run: variants x grid x seeds, in that order.

    A run is what `run.py` makes of the keys of base, variant, grid point and seed, then of the overrides, in this
    order. Keys of `teacher` and `losses` that all runs share are left out of runs whose scheme does not use them.

    Raises:
        UserError: anything wrong in the file or the overrides; the message names the file.
    """
    try:
        return _read(path, tuple(overrides), recipes)
    except UserError as error:
        raise UserError(f"study {path}: {error}") from None


def _read(path: Path, overrides: tuple[str, ...], recipes: Path) -> StudyFile:
    tree = _tree(path)
    question = tree.get("question")
    if not isinstance(question, str) or not question.strip():
        raise UserError("question is missing: say in one sentence what the study asks")
    base = _flat(tree.get("base") or {}, "base")
    variants = _variants(tree)
    grid = _grid(tree, variants)
    seeds = _seeds(tree)
    _check_shared(base, overrides, grid)
    runs = []
    left_out: list[dict[str, UserError]] = []
    for (variant, keys), values, seed in product(variants.items(), product(*grid.values()), seeds):
        point = dict(zip(grid, values, strict=True))
        label = _label(variant, point, seed)
        own = (*_words(keys), *_words(point), f"seed={seed}")
        words, config, without = _build(label, _words(base), own, overrides, recipes)
        runs.append(StudyRun(label=label, variant=variant, grid=point, seed=seed, config=config, overrides=words))
        left_out.append(without)
    for group in OPTIONAL:
        if all(group in without for without in left_out):
            raise left_out[0][group]
    _check_distinct(runs)
    return StudyFile(path=path, question=" ".join(question.split()), overrides=overrides, runs=tuple(runs))


def _build(
    label: str, base: Sequence[str], own: Sequence[str], overrides: Sequence[str], recipes: Path
) -> tuple[tuple[str, ...], Config, dict[str, UserError]]:
    """Return a run's words, its configuration, and by group the error that shared words would have been."""
    words = (*base, *own, *overrides)
    try:
        return words, load_config(words, recipes=recipes), {}
    except UserError as error:
        told = UserError(f"run '{label}': {error}")
    groups = {word: word.partition("=")[0].partition(".")[0] for word in (*base, *overrides)}
    shared = {word: group for word, group in groups.items() if group in OPTIONAL}
    try:
        scheme = load_config([word for word in words if word not in shared], recipes=recipes).scheme
    except UserError:
        raise told from None
    without = {group: told for group in shared.values() if not getattr(scheme, f"uses_{group}")}
    words = tuple(word for word in words if shared.get(word) not in without)
    try:
        return words, load_config(words, recipes=recipes), without
    except UserError as error:
        raise UserError(f"run '{label}': {error}") from None


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
        raise UserError(f"{where} must hold keys, as in a recipe, not {_text(tree)}")
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
            raise UserError(f"variants: {_text(name)} is no name; put quotes around it")
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
            raise UserError(f"grid.{key} must be a list of values, [a, b, ...], not {_text(values)}")
        for name, keys in variants.items():
            if _same(key) in map(_same, keys):
                raise UserError(f"{key} is both in grid and in variants.{name}: keep one")
    return grid


def _seeds(tree: Mapping[str, Any]) -> list[int]:
    seeds = tree.get("seeds", [0])
    whole = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not whole or not seeds:
        raise UserError(f"seeds must be a list of whole numbers from 0 on, [0, 1, ...], not {_text(seeds)}")
    for seed in seeds:
        if seeds.count(seed) > 1:
            raise UserError(f"seeds holds {seed} twice")
    return list(seeds)


def _text(value: Any) -> str:
    """Return a value as it is written in a study file or on a command line, in one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def _words(keys: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(f"{key}={_text(value)}" for key, value in keys.items())


def _label(variant: str | None, point: Mapping[str, Any], seed: int) -> str:
    leaves = [key.rpartition(".")[2] for key in point]
    names = {key: leaf if leaves.count(leaf) == 1 else key for key, leaf in zip(point, leaves, strict=True)}
    words = [variant] if variant is not None else []
    return " ".join((*words, *(f"{names[key]}={_text(value)}" for key, value in point.items()), f"seed={seed}"))


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


def _check_distinct(runs: Sequence[StudyRun]) -> None:
    labels: dict[str, str] = {}
    for run in runs:
        other = labels.setdefault(run.folder, run.label)
        if other != run.label:
            raise UserError(f"'{other}' and '{run.label}' are the same run")
    if len(labels) < len(runs):
        twice = next(run.label for run in runs if [other.label for other in runs].count(run.label) > 1)
        raise UserError(f"'{twice}' is there twice")
