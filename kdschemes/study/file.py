"""Study files: a question, and variants x grid x seeds of a base, each a run that `run.py` could start by itself."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from kdschemes.config import Config
from kdschemes.config.load import STUDIES, load_config, run_name
from kdschemes.errors import UserError, unknown
from kdschemes.study.keys import in_line, in_words, read_keys

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
OPTIONAL = ("teacher", "losses")
"""Groups that some schemes do not use; a key of theirs that all runs share is left out where it has no effect."""


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
    keys = read_keys(path, overrides)
    runs = []
    left_out: list[dict[str, UserError]] = []
    for (variant, own), values, seed in product(keys.variants.items(), product(*keys.grid.values()), keys.seeds):
        point = dict(zip(keys.grid, values, strict=True))
        label = _label(variant, point, seed)
        words = (*in_words(own), *in_words(point), f"seed={seed}")
        words, config, without = _build(label, in_words(keys.base), words, overrides, recipes)
        runs.append(StudyRun(label=label, variant=variant, grid=point, seed=seed, config=config, overrides=words))
        left_out.append(without)
    for group in OPTIONAL:
        if all(group in without for without in left_out):
            raise left_out[0][group]
    _check_distinct(runs)
    return StudyFile(path=path, question=keys.question, overrides=overrides, runs=tuple(runs))


def _build(
    label: str, base: Sequence[str], own: Sequence[str], overrides: Sequence[str], recipes: Path
) -> tuple[tuple[str, ...], Config, dict[str, UserError]]:
    """Return a run's words, its configuration, and by group the error that shared words would have been."""
    words = (*base, *own, *overrides)
    try:
        return words, load_config(words, recipes=recipes), {}
    except UserError as error:
        told = UserError(f"run '{label}': {error}")
    groups = {word: word.partition("=")[0].partition(".")[0] for word in words}
    shared = {word: groups[word] for word in (*base, *overrides) if groups[word] in OPTIONAL}
    try:
        scheme = load_config([word for word in words if groups[word] not in OPTIONAL], recipes=recipes).scheme
    except UserError:
        raise told from None
    without = {group: told for group in shared.values() if not getattr(scheme, f"uses_{group}")}
    words = tuple(word for word in words if shared.get(word) not in without)
    try:
        return words, load_config(words, recipes=recipes), without
    except UserError as error:
        raise UserError(f"run '{label}': {error}") from None


def _label(variant: str | None, point: Mapping[str, Any], seed: int) -> str:
    leaves = [key.rpartition(".")[2] for key in point]
    names = {key: leaf if leaves.count(leaf) == 1 else key for key, leaf in zip(point, leaves, strict=True)}
    words = [variant] if variant is not None else []
    return " ".join((*words, *(f"{names[key]}={in_line(value)}" for key, value in point.items()), f"seed={seed}"))


def _check_distinct(runs: Sequence[StudyRun]) -> None:
    labels: dict[str, str] = {}
    for run in runs:
        other = labels.setdefault(run.folder, run.label)
        if other != run.label:
            raise UserError(f"'{other}' and '{run.label}' are the same run")
    if len(labels) < len(runs):
        twice = next(run.label for run in runs if [other.label for other in runs].count(run.label) > 1)
        raise UserError(f"'{twice}' is there twice")
