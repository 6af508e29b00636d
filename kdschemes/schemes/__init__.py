"""The schemes: who teaches whom. Importing this imports every builder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from kdschemes.config import TEACHER, Config
from kdschemes.core.distillation import Distillation
from kdschemes.core.terms import Transfer
from kdschemes.core.types import Task
from kdschemes.schemes.base import Builder, Builders, Earlier
from kdschemes.schemes.custom import TOPOLOGY
from kdschemes.schemes.networks import with_average
from kdschemes.schemes.offline import OFFLINE
from kdschemes.schemes.online import ONLINE
from kdschemes.schemes.prerequisites import EARLIER
from kdschemes.schemes.self_distillation import SELF
from kdschemes.schemes.supervised import SUPERVISED
from kdschemes.seeding import seeded

__all__ = ["BUILDERS", "EARLIER", "Builder", "Builders", "Earlier", "build_scheme", "earlier_runs", "taught_by"]

BUILDERS: Builders = {**SUPERVISED, **OFFLINE, **ONLINE, **SELF, **TOPOLOGY}
"""Who builds the scheme of each class of options; names are in `kdschemes.config.schemes.SCHEMES`."""


def build_scheme(config: Config, task: Task) -> Distillation:
    """Build the scheme that a configuration names, with initial weights that depend on its seeds alone.

    Raises:
        UserError: a model, a checkpoint or a loss that does not fit.
    """
    with seeded(config.seed, "init", "projections"):
        scheme = BUILDERS[type(config.scheme)](config, task)
    if not config.train.gather:
        for term in scheme.terms:
            if isinstance(term, Transfer):
                term.stay_local()
    return with_average(scheme, config.train.ema) if config.train.ema is not None else scheme


def earlier_runs(config: Config) -> list[Config]:
    """Return the runs whose reported networks teach this one and that have to be finished first, in order."""
    find = EARLIER.get(type(config.scheme))
    return [dataclasses.replace(run, job_type=TEACHER) for run in find(config)] if find is not None else []


def taught_by(config: Config, folders: Sequence[str] | None) -> Config:
    """Return a configuration whose teachers are its earlier runs, in these folders (None: not trained yet)."""
    names = [run.model.name for run in earlier_runs(config)]
    checkpoint = list(folders) if folders is not None else None
    teacher = dataclasses.replace(config.teacher, name=names, checkpoint=checkpoint, pretrained=False)
    return dataclasses.replace(config, teacher=teacher)
