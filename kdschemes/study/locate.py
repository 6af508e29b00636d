"""Locations: the batch scripts, the recipes, and a study's folder."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import kdschemes
from kdschemes.config.load import check_allowed
from kdschemes.config.recipes import STUDIES
from kdschemes.errors import UserError, unknown
from kdschemes.study.prerequisites import with_prerequisites
from kdschemes.study.record import RECORD, Study, read_study_folder, remember
from kdschemes.study.spec import StudyFile, StudyRun, find_study_file, known_studies, read_study

SCRIPT, REPORT_SCRIPT, SITE = "slurm/study.sbatch", "slurm/report.sbatch", "slurm/site.sh"

RECIPES = "experiments"


def shipped() -> Path:
    """Return the folder of what kdschemes brings besides its modules: `experiments` and `slurm`.

    It is inside an installed package; of a clone, it is the clone.
    """
    package = Path(kdschemes.__file__).resolve().parent
    inside = package / "shipped"
    return inside if inside.is_dir() else package.parent


def scripts() -> Path:
    """Return the folder that holds `slurm` with the batch scripts: the current one, or else the shipped one."""
    here = Path.cwd()
    return here if (here / SCRIPT).is_file() else shipped()


def recipes() -> Path:
    """Return the folder of recipes and studies: that of a clone in the current folder, or else the shipped one."""
    here = Path.cwd()
    return (here if (here / "run.py").is_file() and (here / RECIPES).is_dir() else shipped()) / RECIPES


def study_folder(output: Path, name: str) -> Path:
    """Return the folder of a study among the runs' folders in `output`."""
    return output / STUDIES / name


def find_study(study: str, output: str | None) -> Study:
    """Return a study by its folder, its file or its name; if it was never started, as its file says.

    `output` holds the runs' folders; None: what the study file says, else `runs`.

    Raises:
        UserError: there is none; the message suggests the closest name.
    """
    path = Path(study)
    name = path.stem if path.suffix in (".yaml", ".yml") else study
    runs = Path(output if output is not None else "runs")
    for folder in (path, study_folder(runs, name)):
        if (folder / RECORD).is_file():
            return read_study_folder(folder)
    begun = sorted(file.parent.name for file in (runs / STUDIES).glob(f"*/{RECORD}"))
    known = [*begun, *known_studies(recipes())]
    if path.suffix not in (".yaml", ".yml") and name not in known:
        raise unknown("study", study, dict.fromkeys(known)) if known else UserError(f"unknown study '{study}'")
    file = read_study(find_study_file(study, recipes()), (), recipes=recipes())
    folder = study_folder(Path(output) if output is not None else file.output, name)
    if (folder / RECORD).is_file():
        return read_study_folder(folder)
    return remember(folder, file, [*file.prerequisites, *file.runs])


@dataclass(frozen=True, kw_only=True)
class OpenStudy:
    """A study file as read, its runs after their prerequisites, the study as it will be recorded, and notes."""

    file: StudyFile
    runs: tuple[StudyRun, ...]
    study: Study
    notes: tuple[str, ...]


def open_study(name: str, overrides: Sequence[str], *, recipes: Path) -> OpenStudy:
    """Read a study with its overrides or, without any, with those with which it was started. Writes nothing.

    Raises:
        UserError: a mistake in the study, Python code that was not allowed, or overrides that differ from before and
            would orphan its runs.
    """
    path = find_study_file(name, recipes)
    file = read_study(path, overrides, recipes=recipes)
    folder = study_folder(file.output, file.name).absolute()
    notes: list[str] = []
    if (folder / RECORD).is_file():
        before = read_study_folder(folder)
        gone = {entry.folder for entry in before.runs} - {run.folder for run in file.runs}
        given = shlex.join(before.overrides)
        if before.overrides and not file.run_overrides:
            file = read_study(path, (*before.overrides, *overrides), recipes=recipes)
            notes.append(f"overrides as before: {given}")
        elif gone and before.overrides != file.run_overrides:
            raise UserError(
                f"study {path}: was started with {given or 'no overrides'}, and {len(gone)} of its runs would change "
                "now: give the same overrides, or another output_dir="
            )
        elif gone:
            runs = "1 earlier run is" if len(gone) == 1 else f"{len(gone)} earlier runs are"
            notes.append(f"{runs} no longer in {path}")
    all_runs = with_prerequisites(file)
    check_allowed(run.config for run in all_runs)
    return OpenStudy(file=file, runs=tuple(all_runs), study=remember(folder, file, all_runs), notes=tuple(notes))
