"""A study that is about to be run or submitted: its runs, with overrides as remembered, and its folder."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdschemes.errors import UserError
from kdschemes.study.earlier import with_earlier
from kdschemes.study.file import StudyFile, StudyRun, find_study_file, read_study
from kdschemes.study.folder import RECORD, Study, read_study_folder, remember
from kdschemes.study.places import study_folder


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A study file as read, its runs after those that they need, the study as it will be remembered, what to tell."""

    file: StudyFile
    runs: tuple[StudyRun, ...]
    study: Study
    notes: tuple[str, ...]


def open_study(name: str, overrides: Sequence[str], *, recipes: Path) -> Opened:
    """Read a study with its overrides, or, without any, with those that it was begun with. Writes nothing.

    Raises:
        UserError: a mistake in the study, or other overrides than before, which would leave its runs behind.
    """
    file, notes = _read(find_study_file(name, recipes), tuple(overrides), recipes)
    runs = with_earlier(file)
    study = remember(
        study_folder(file.output, file.name).absolute(),
        file.question,
        _but_output(file.overrides),
        runs,
        analyses=file.analyses,
        baseline=file.baseline,
    )
    return Opened(file=file, runs=tuple(runs), study=study, notes=tuple(notes))


def _but_output(overrides: Sequence[str]) -> tuple[str, ...]:
    return tuple(word for word in overrides if not word.startswith("output="))


def _read(path: Path, overrides: tuple[str, ...], recipes: Path) -> tuple[StudyFile, list[str]]:
    study = read_study(path, overrides, recipes=recipes)
    folder = study_folder(study.output, study.name)
    if not (folder / RECORD).is_file():
        return study, []
    before = read_study_folder(folder)
    if before.overrides and not _but_output(overrides):
        study = read_study(path, (*before.overrides, *overrides), recipes=recipes)
        return study, [f"overrides as before: {shlex.join(before.overrides)}"]
    gone = {entry.folder for entry in before.runs} - {run.folder for run in study.runs}
    if gone and before.overrides != _but_output(overrides):
        given = shlex.join(before.overrides) or "no overrides"
        raise UserError(
            f"study {path}: was begun with {given}, and {len(gone)} of its runs would be others now: "
            "give the same overrides, or another output="
        )
    runs = "1 run that was there before is" if len(gone) == 1 else f"{len(gone)} runs that were there before are"
    return study, [f"{runs} no longer in {path}"] if gone else []
