"""The runs that a run needs first: each is a run of its own, which other runs find again."""

from __future__ import annotations

import dataclasses

from kdschemes.config import Config, Model
from kdschemes.config.schemes import Method
from kdschemes.config.schemes.offline import OfflineKD
from kdschemes.config.schemes.supervised import Supervised
from kdschemes.config.schemes.topology import Topology
from kdschemes.schemes.base import Earlier


def teachers(config: Config) -> list[Config]:
    """Return the supervised runs that train the teachers, where the user gives no weights for them."""
    if not config.scheme.uses_teacher or config.teacher.checkpoint is not None or config.teacher.pretrained:
        return []
    names = config.teacher.name if isinstance(config.teacher.name, list) else [config.teacher.name]
    return [teacher_config(config, name, number) for number, name in enumerate(names)]


def teacher_config(config: Config, name: str, number: int) -> Config:
    """Return the supervised run that trains teacher `number` of a run which has no checkpoint for it."""
    return dataclasses.replace(
        config,
        scheme=Supervised(),
        model=Model(name=name),
        teacher=type(config.teacher)(),
        losses=type(config.losses)(),
        train=dataclasses.replace(config.train, epochs=config.teacher.epochs or config.train.epochs, ema=None),
        seed=config.teacher.seed + number,
    )


EARLIER: dict[type[Method], Earlier] = {OfflineKD: teachers, Topology: teachers}
"""Who knows the earlier runs of each class of options; the others need none."""
