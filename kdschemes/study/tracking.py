"""The runs of a study in W&B: all in one group, including those that were finished before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdschemes.storage.results import read_results
from kdschemes.study.spec import StudyRun
from kdschemes.study.status import Status
from kdschemes.tracking.trackers import report_finished


def give_finished(runs: Sequence[StudyRun], found: Status) -> None:
    """Send the finished runs of a study to W&B if they use it as a tracker and are not in its group yet.

    Raises:
        UserError: W&B can't start, or a run's files can't be read.
    """
    for run in runs:
        if "wandb" in run.config.tracker and found.by_folder[run.folder].state == "finished":
            folder = Path(run.path)
            results = read_results(folder)
            assert results is not None, f"{folder} is not finished"
            report_finished(run.config, folder, results)
