"""A small study and its record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdschemes.study.prerequisites import with_prerequisites
from kdschemes.study.record import Study, remember
from kdschemes.study.spec import StudyRun, read_study

TEXT = """
question: Does a teacher help?
base: {scheme: offline, teacher: resnet20, teacher.epochs: 4, model: convnet, train.epochs: 4}
variants: {kd: {}, soft: {scheme.alpha: 1}, ce: {scheme: supervised}, wide: {scheme: supervised, model: resnet56}}
"""


def opened(folder: Path) -> tuple[Study, list[StudyRun]]:
    (folder / "mine.yaml").write_text(TEXT)
    file = read_study(folder / "mine.yaml", [f"output_dir={folder / 'runs'}"], recipes=folder)
    runs = with_prerequisites(file)
    study = remember(folder / "runs" / "studies" / "mine", file, runs)
    (study.folder / "logs").mkdir(parents=True)
    return study, runs


def by_name(runs: Sequence[StudyRun]) -> dict[str, StudyRun]:
    return {"teacher" if run.earlier else run.label.removesuffix(" seed=0"): run for run in runs}
