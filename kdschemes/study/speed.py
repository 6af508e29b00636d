"""How long the rest of a study takes, by what its packs have taken so far."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from kdschemes.study.file import StudyRun
from kdschemes.study.packs import makespan

Left = Sequence[tuple[StudyRun, float]]
"""The runs of a pack, each with the epochs that it has left."""


class Speed:
    """The seconds of an epoch of each kind of run, measured: a pack's time is shared by its runs' epochs."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, ...], float] = {}

    def measured(self, runs: Iterable[StudyRun], seconds: float) -> None:
        """Take the seconds that an epoch of one of these runs takes on average."""
        for run in runs:
            self._seconds[_kind(run)] = seconds

    def left(self, going: Sequence[Left], waiting: Sequence[Left], workers: int) -> float | None:
        """Return the seconds until all is done, in the order given; None before anything was measured."""
        if not self._seconds:
            return None
        usual = statistics.fmean(self._seconds.values())

        def seconds(pack: Left) -> float:
            return sum(epochs * self._seconds.get(_kind(run), usual) for run, epochs in pack)

        busy = [seconds(pack) for pack in going]
        return makespan(busy + [0.0] * (workers - len(busy)), map(seconds, waiting))


def _kind(run: StudyRun) -> tuple[str, ...]:
    config = run.config
    teacher = str(config.teacher.name) if config.scheme.uses_teacher else ""
    return config.data.name, config.scheme.name, config.scheme.method, config.model.name, teacher
