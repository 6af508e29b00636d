"""The runs that must be finished first, because their networks teach runs of a study."""

from __future__ import annotations

import dataclasses

from kdschemes.config import Config
from kdschemes.config.load import run_name
from kdschemes.errors import UserError
from kdschemes.study.file import StudyFile, StudyRun


def with_earlier(study: StudyFile) -> list[StudyRun]:
    """Return the runs of a study with what each needs, after the runs that are needed and are not among its own.

    Imports torch: who is needed is known where schemes are built.

    Raises:
        UserError: a run's teacher is neither given nor can be trained first.
    """
    from kdschemes.schemes import earlier_runs

    needs: dict[str, tuple[str, ...]] = {}
    configs: dict[str, Config] = {}

    def collect(config: Config) -> str:
        name = run_name(config)
        if name not in needs:
            needs[name] = tuple(collect(earlier) for earlier in earlier_runs(config))
            configs[name] = config
        return name

    for run in study.runs:
        try:
            collect(run.config)
        except UserError as error:
            raise UserError(f"study {study.path}: run '{run.label}': {error}") from None
    own = {run.folder for run in study.runs}
    others = {name: name.rpartition("-")[0] for name in configs if name not in own}
    first = []
    for name, label in others.items():
        if list(others.values()).count(label) > 1:
            label = name
        config = configs[name]
        run = StudyRun(label=label, seed=config.seed, config=config, grid={}, earlier=True, needs=needs[name])
        first.append(run)
    return first + [dataclasses.replace(run, needs=needs[run.folder]) for run in study.runs]
