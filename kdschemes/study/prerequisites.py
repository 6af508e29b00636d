"""Prerequisites: runs that must be finished first because others are taught by them or start from their weights."""

from __future__ import annotations

from dataclasses import replace

from kdschemes.config import TEACHER, Config
from kdschemes.config.prerequisites import prerequisite_runs
from kdschemes.errors import UserError
from kdschemes.storage.naming import run_name
from kdschemes.study.spec import StudyFile, StudyRun


def with_prerequisites(study: StudyFile) -> list[StudyRun]:
    """Return the runs of a study with their prerequisites, preceded by prerequisites that are not among its own runs.

    These are the study file's `prerequisites` that a run needs, and teachers without weights. All are in one group in
    W&B, named like the study.

    Raises:
        UserError: a run's teacher is neither given nor trainable first.
    """
    needs: dict[str, tuple[str, ...]] = {}
    configs: dict[str, Config] = {}
    named = {run.folder: run for run in study.prerequisites}

    def collect(config: Config) -> str:
        name = run_name(config)
        if name not in needs:
            own = [named[folder].config for folder in study.needs(config)]
            needs[name] = tuple(dict.fromkeys(collect(earlier) for earlier in (*own, *prerequisite_runs(config))))
            configs[name] = config
        return name

    for run in study.runs:
        try:
            collect(run.config)
        except UserError as error:
            raise UserError(f"study {study.path}: run '{run.label}': {error}") from None
    own = {run.folder for run in study.runs}
    first = []
    earlier = [name for name in configs if name not in own]
    labels = {name: name.rpartition("-")[0] for name in earlier if name not in named}
    for name in earlier:
        config = configs[name]
        if name in named:
            run = named[name]
            config = replace(run.config, job_type=run.config.job_type or TEACHER)
            first.append(replace(run, config=config, needs=needs[name]))
        else:
            label = labels[name] if list(labels.values()).count(labels[name]) == 1 else name
            run = StudyRun(label=label, seed=config.seed, config=config, grid={}, earlier=True, needs=needs[name])
            first.append(run)
    runs = first + [replace(run, needs=needs[run.folder]) for run in study.runs]
    return [_in_group(run, study.name) for run in runs]


def _in_group(run: StudyRun, group: str) -> StudyRun:
    """Return a run in the W&B group of its study, unless the user sets another one."""
    return run if run.config.group is not None else replace(run, config=replace(run.config, group=group))
