"""Study files: a question, and variants x grid x seeds of a base, each a run that `run.py` could start by itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from kdschemes.config import Config
from kdschemes.config.code import CodeRefused
from kdschemes.config.load import load_config
from kdschemes.config.naming import in_line
from kdschemes.config.recipes import STUDIES
from kdschemes.config.soft_term import effective
from kdschemes.errors import UserError, shown, unknown
from kdschemes.storage.naming import run_name
from kdschemes.study.published import check_published
from kdschemes.study.spec_keys import NAME, PREREQUISITES, REFERRING, Keys, StudyKeys, in_words, read_keys, referred

OPTIONAL = ("teacher", "losses")
"""Groups that some schemes do not use; shared keys of these are dropped from runs on which they have no effect."""


@dataclass(frozen=True, kw_only=True)
class StudyRun:
    """One run of a study. `overrides` are the arguments of `run.py` that give `config`.

    A prerequisite of others is `earlier`; it has no overrides if the study file does not name it.
    `needs` are the folder names of its prerequisites.
    """

    label: str
    seed: int
    config: Config
    variant: str | None = None
    grid: Mapping[str, Any]
    overrides: tuple[str, ...] = ()
    earlier: bool = False
    needs: tuple[str, ...] = ()

    @cached_property
    def folder(self) -> str:
        """Name of the run's folder in the study's output."""
        return run_name(self.config)

    @property
    def path(self) -> str:
        """The run's folder, as written in a configuration."""
        return str(Path(self.config.output_dir) / self.folder)

    @property
    def point(self) -> str:
        """The label without the seed."""
        return self.label.rpartition("seed=")[0].rstrip()


@dataclass(frozen=True, kw_only=True)
class StudyFile:
    """A study file with its `keys`, expanded to `runs`, preceded by the runs that the file lists in `prerequisites`.

    `overrides` are from the command line, `output` contains all runs' folders.
    """

    path: Path
    keys: StudyKeys
    overrides: tuple[str, ...]
    runs: tuple[StudyRun, ...]
    prerequisites: tuple[StudyRun, ...] = ()

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def output(self) -> Path:
        """Folder that contains the folders of the study and of its runs."""
        return Path(self.runs[0].config.output_dir)

    @property
    def run_overrides(self) -> tuple[str, ...]:
        """The overrides that change what the runs compute: all but the one of their location."""
        return tuple(word for word in self.overrides if not word.startswith("output_dir="))

    def needs(self, config: Config) -> tuple[str, ...]:
        """Return the folder names of runs in `prerequisites` whose weights a configuration uses."""
        by_path = {run.path: run.folder for run in self.prerequisites}
        return tuple(by_path[path] for *_, path in _weights(config) if path in by_path)


def known_studies(recipes: Path) -> list[str]:
    """Return the names of the studies in a folder of recipes."""
    return sorted(file.stem for file in (recipes / STUDIES).glob("*.yaml"))


def find_study_file(name: str, recipes: Path) -> Path:
    """Return the path of a study: `recipes/studies/NAME.yaml`, or the path to any such file.

    Raises:
        UserError: there is no such study, or its file name cannot be a job name.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = recipes / STUDIES / f"{name}.yaml"
        if not path.is_file():
            known = known_studies(recipes)
            raise unknown("study", name, known) if known else UserError(f"no studies in {recipes / STUDIES}")
    if not path.is_file():
        raise UserError(f"study {path} does not exist")
    if not NAME.fullmatch(path.stem):
        raise UserError(f"study {path}: name the file with letters, digits, '.', '_' and '-' only: it names jobs")
    return path


def read_study(path: Path, overrides: Sequence[str], *, recipes: Path) -> StudyFile:
    """Read a study file and build the configuration of each run: variants x grid x seeds, in that order.

    A run is what `run.py` makes of the keys of base, variant, grid point and seed, and then of the overrides. Keys of
    `teacher` and `losses` that all runs share or that are in the grid are left out of runs whose scheme does not use
    them, and so are keys of `scheme` in the grid; a variant is one point for all values of a key that is left out, and
    alpha = 0 is one for all options of the loss that it switches off.

    Raises:
        UserError: anything wrong in the file or the overrides; the message names the file.
    """
    try:
        return _read(path, tuple(overrides), recipes)
    except CodeRefused:
        raise
    except UserError as error:
        raise UserError(f"study {path}: {error}") from None


def _read(path: Path, overrides: tuple[str, ...], recipes: Path) -> StudyFile:
    keys = read_keys(path, overrides)
    left_out: list[dict[str, UserError]] = []

    def build(label: str, own: Keys, seed: int, named: Mapping[str, StudyRun], point: Keys) -> StudyRun:
        folders = {name: run.path for name, run in named.items()}
        base, at = in_words(keys.base, folders), in_words(point, folders)
        words = (*base, *in_words(own, folders), *at, f"seed={seed}", *overrides)
        words, config, without = _build(label, words, {*base, *at, *overrides}, at, recipes)
        left_out.append(without)
        if config.precision == "auto":
            raise UserError(f"run '{label}': precision=auto may differ between machines: set precision=fp32 or bf16")
        for name in (name for *_, path in _weights(config) for name in referred(path)):
            raise UserError(f"run '{shown(label)}' needs {PREREQUISITES}.{name}, which must be listed before it")
        grid = {key: value for key, value in point.items() if not {key, key.partition(".")[0]} & without.keys()}
        grid = effective(grid, asdict(config.scheme))
        run = StudyRun(label=label, grid=grid, seed=seed, config=config, overrides=words)
        _check_models(run, named)
        return run

    prerequisites: dict[int, dict[str, StudyRun]] = {seed: {} for seed in keys.seeds}
    for seed, named in prerequisites.items():
        for name, own in keys.prerequisites.items():
            named[name] = replace(build(f"{name} seed={seed}", own, seed, named, {}), earlier=True)
    runs: list[StudyRun] = []
    for (variant, own), values, seed in product(keys.variants.items(), product(*keys.grid.values()), keys.seeds):
        point = dict(zip(keys.grid, values, strict=True))
        run = build(label_of(variant, point, seed), own, seed, prerequisites[seed], point)
        label = label_of(variant, run.grid, seed)
        if label == run.label or label not in [other.label for other in runs]:
            runs.append(replace(run, label=label, variant=variant))
    for group in OPTIONAL:
        if all(group in without for without in left_out):
            raise left_out[0][group]
    for key in keys.grid:
        if not any(key in run.grid for run in runs):
            raise next(
                without[name] for without in left_out for name in (key, key.partition(".")[0]) if name in without
            )
    _check_distinct(runs)
    earlier = [run for named in prerequisites.values() for run in named.values()]
    _check_distinct(earlier)
    study = StudyFile(path=path, keys=keys, overrides=overrides, runs=tuple(runs), prerequisites=tuple(earlier))
    _check_used(study)
    return study


def _weights(config: Config) -> list[tuple[str, str, str]]:
    """Return the networks of a run that start from, or teach with, given weights: key, network, checkpoint."""
    names = config.scheme.trained_models(config.model.name)
    given = [("model", *pair) for pair in zip(names, _listed(config.model.checkpoint), strict=False)]
    if config.scheme.uses_teacher:
        pairs = zip(_listed(config.teacher.name), _listed(config.teacher.checkpoint), strict=False)
        given += [("teacher", *pair) for pair in pairs]
    return given


def _listed(value: str | list[str] | None) -> list[str]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _check_models(run: StudyRun, prerequisites: Mapping[str, StudyRun]) -> None:
    """Refuse a network with the weights of a different one."""
    for key, name, checkpoint in _weights(run.config):
        for other, source in prerequisites.items():
            trained = source.config.scheme.trained_models(source.config.model.name)
            if checkpoint == source.path and name not in trained:
                raise UserError(
                    f"run '{shown(run.label)}': {key}={name}, but its weights are those of {PREREQUISITES}.{other}, "
                    f"a {trained[0]}: set {key}={trained[0]}"
                )


def _check_used(study: StudyFile) -> None:
    """Refuse an unused prerequisite, and a baseline, a comparison or a published value of no point of the study."""
    given = [word.partition("=")[0] for word in study.overrides]
    needed = {folder for run in (*study.prerequisites, *study.runs) for folder in study.needs(run.config)}
    for run in study.prerequisites if not any(key in REFERRING for key in given) else ():
        if run.folder not in needed:
            raise UserError(f"no run refers to {PREREQUISITES}.{run.point}: remove it")
    points = dict.fromkeys(run.point for run in study.runs)
    for label in (label for pair in study.keys.compare for label in pair):
        if label not in points and label not in study.keys.prerequisites:
            raise unknown("run in compare", label, [*points, *study.keys.prerequisites])
    baseline = study.keys.baseline
    if baseline is not None and baseline not in points:
        raise unknown("baseline", baseline, points)
    check_published(study.keys.published, [point or study.name for point in (*points, *study.keys.prerequisites)])


def _build(
    label: str, words: tuple[str, ...], shared: Collection[str], point: Collection[str], recipes: Path
) -> tuple[tuple[str, ...], Config, dict[str, UserError]]:
    """Return a run's arguments, its configuration, and the errors that arguments it does not use would have raised.

    The latter are groups of shared arguments, by group, and the point's options of a scheme, by key.
    """
    try:
        return words, load_config(words, recipes=recipes), {}
    except CodeRefused:
        raise
    except UserError as error:
        problem = UserError(f"run '{shown(label)}': {error}")
    groups = {word: word.partition("=")[0].partition(".")[0] for word in words}
    optional = {word: groups[word] for word in words if groups[word] in OPTIONAL}
    options = {word: word.partition("=")[0] for word in point if word.startswith("scheme.")}
    try:
        scheme = load_config([word for word in words if word not in {**optional, **options}], recipes=recipes).scheme
    except UserError:
        raise problem from None
    without = {optional[word]: problem for word in optional if word in shared}
    without = {group: problem for group in without if not getattr(scheme, f"uses_{group}")}
    without |= {key: problem for key in options.values() if not hasattr(scheme, key.rpartition(".")[2])}
    words = tuple(word for word in words if not (word in shared and {groups[word], options.get(word)} & without.keys()))
    try:
        return words, load_config(words, recipes=recipes), without
    except UserError as error:
        raise UserError(f"run '{shown(label)}': {error}") from None


def label_of(variant: str | None, point: Mapping[str, Any], seed: int) -> str:
    """Return the label of a run: its variant, the last parts of its grid keys with their values, and its seed."""
    leaves = [key.rpartition(".")[2] for key in point]
    names = {key: leaf if leaves.count(leaf) == 1 else key for key, leaf in zip(point, leaves, strict=True)}
    words = [variant] if variant is not None else []
    return " ".join((*words, *(f"{names[key]}={in_line(value)}" for key, value in point.items()), f"seed={seed}"))


def _check_distinct(runs: Sequence[StudyRun]) -> None:
    labels: dict[str, str] = {}
    for run in runs:
        other = labels.get(run.folder)
        if other == run.label:
            raise UserError(f"'{shown(other)}' is given twice")
        if other is not None:
            raise UserError(f"'{shown(other)}' and '{shown(run.label)}' are the same run")
        labels[run.folder] = run.label
