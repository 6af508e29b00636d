"""The runs of a study in W&B: all in one group, those too that were finished before."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from kdschemes.config import Config
from kdschemes.storage.results import read_results
from kdschemes.study.spec import StudyRun
from kdschemes.study.status import Status


def in_group(config: Config, group: str) -> Config:
    """Return the configuration of a run in a study's group, unless the user names another one."""
    return config if config.group is not None else dataclasses.replace(config, group=group)


def give_finished(runs: Sequence[StudyRun], found: Status) -> None:
    """Give the finished runs of a study to W&B, where they have it among their trackers and are not in its group yet.

    Raises:
        UserError: W&B can't start, or what a run left can't be read.
    """
    for run in runs:
        if "wandb" in run.config.tracker and found.of(run.folder).state == "finished":
            from kdschemes.tracking.trackers import report_finished

            folder = Path(run.path)
            results = read_results(folder)
            assert results is not None, f"{folder} is not finished"
            report_finished(in_group(run.config, found.study.name), folder, results)
