"""Estimated time left of a study, from the times that its packs have taken so far."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from kdschemes.study.local.packs import epoch_work, makespan
from kdschemes.study.spec import StudyRun

Left = Sequence[tuple[StudyRun, float]]
"""The runs of a pack, each with its remaining epochs."""


class Speed:
    """Measured seconds per epoch of each kind of run, and from its last epoch to its results.

    A pack's time is shared by its runs. Kinds not seen yet are estimated from the others by work.
    """

    def __init__(self) -> None:
        self._seconds: dict[tuple[object, ...], float] = {}
        self._per_work: dict[tuple[object, ...], float] = {}
        self._closing = 0.0

    def measured(self, runs: Sequence[StudyRun], seconds: float) -> None:
        """Record the average seconds per epoch of a run of a pack."""
        work = statistics.fmean(epoch_work(run.config, len(runs)) for run in runs)
        for kind in map(_kind, runs):
            self._seconds[kind] = seconds
            self._per_work[kind] = seconds / work

    def closed(self, seconds: float) -> None:
        """Record the average seconds that a run of a pack takes after its last epoch, to evaluate and write."""
        self._closing = seconds

    def left(self, active: Iterable[Left], waiting: Iterable[Left], workers: int) -> float | None:
        """Return the seconds until all is done, in the given order; None before anything was measured."""
        if not self._seconds:
            return None
        busy = [self._pack(pack) for pack in active]
        return makespan(busy + [0.0] * (workers - len(busy)), map(self._pack, waiting))

    def _pack(self, pack: Left) -> float:
        return sum(epochs * self._epoch(run, len(pack)) + self._closing for run, epochs in pack)

    def _epoch(self, run: StudyRun, pack_size: int) -> float:
        if (known := self._seconds.get(_kind(run))) is not None:
            return known
        return statistics.fmean(self._per_work.values()) * epoch_work(run.config, pack_size)


def _kind(run: StudyRun) -> tuple[object, ...]:
    config = run.config
    teacher = str(config.teacher.name) if config.scheme.uses_teacher else ""
    losses = tuple(options.name for _, options in config.losses.chosen())
    data = (config.data.name, config.data.train_fraction, config.train.batch_size)
    models = config.scheme.trained_models(config.model.name)
    return *data, config.scheme.name, config.scheme.method, *models, teacher, *losses
