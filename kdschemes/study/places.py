"""Where things are: run.py with its batch scripts and recipes, and a study's folder."""

from __future__ import annotations

from pathlib import Path

import kdschemes
from kdschemes.config.recipes import STUDIES
from kdschemes.errors import UserError, unknown
from kdschemes.study.file import find_study_file, known_studies, read_study
from kdschemes.study.folder import RECORD, Study, read_study_folder, remember

SCRIPT, REPORT_SCRIPT, SITE = "slurm/study.sbatch", "slurm/report.sbatch", "slurm/site.sh"


def repository() -> Path:
    """Return the folder of run.py and slurm/: the current one, or the clone that the package was installed from.

    Raises:
        UserError: neither holds them.
    """
    clone = Path(kdschemes.__file__).resolve().parents[1]
    for place in (Path.cwd(), clone):
        if (place / "run.py").is_file() and (place / SCRIPT).is_file():
            return place
    raise UserError(f"no run.py and {SCRIPT} in {Path.cwd()} or {clone}: start kdschemes in a clone of its repository")


def recipes() -> Path:
    """Return the folder of recipes and studies; it need not exist."""
    try:
        return repository() / "experiments"
    except UserError:
        return Path("experiments")


def study_folder(output: Path, name: str) -> Path:
    """Return the folder of a study among the runs' folders in `output`."""
    return output / STUDIES / name


def find_study(study: str, output: str | None) -> Study:
    """Return a study by its folder, its file or its name; one that was never begun as its file says.

    `output` holds the runs' folders; None: what the study file says, else `runs`.

    Raises:
        UserError: there is none; the message names the nearest.
    """
    path = Path(study)
    if (path / RECORD).is_file():
        return read_study_folder(path)
    name = path.stem if path.suffix in (".yaml", ".yml") else study
    runs = Path(output if output is not None else "runs")
    if (study_folder(runs, name) / RECORD).is_file():
        return read_study_folder(study_folder(runs, name))
    begun = sorted(file.parent.name for file in (runs / STUDIES).glob(f"*/{RECORD}"))
    known = [*begun, *known_studies(recipes())]
    if path.suffix not in (".yaml", ".yml") and name not in known:
        raise unknown("study", study, dict.fromkeys(known)) if known else UserError(f"unknown study '{study}'")
    file = read_study(find_study_file(study, recipes()), (), recipes=recipes())
    folder = study_folder(Path(output) if output is not None else file.output, name)
    if (folder / RECORD).is_file():
        return read_study_folder(folder)
    all_runs = [*file.first, *file.runs]
    return remember(folder, file.question, (), all_runs, analyses=file.analyses, baseline=file.baseline)
