"""The runs that a run needs first: each is a run of its own, which other runs find again."""

from __future__ import annotations

import dataclasses

from kdschemes.config import Config, Model
from kdschemes.config.schemes import Method
from kdschemes.config.schemes.custom import Topology
from kdschemes.config.schemes.offline import OfflineCAMKD, OfflineDPKD, OfflineKD, OfflinePartial, OfflineTAKD
from kdschemes.config.schemes.self_distillation import SelfBAN, SelfTfKD
from kdschemes.config.schemes.supervised import Supervised
from kdschemes.errors import UserError
from kdschemes.schemes.base import Earlier


def teachers(config: Config) -> list[Config]:
    """Return the supervised runs that train the teachers, where the user gives no weights for them."""
    if not config.scheme.uses_teacher or config.teacher.checkpoint is not None or config.teacher.pretrained:
        return []
    names = config.teacher.name if isinstance(config.teacher.name, list) else [config.teacher.name]
    return [teacher_config(config, name, number) for number, name in enumerate(names)]


def teacher_config(config: Config, name: str, number: int) -> Config:
    """Return the supervised run that trains teacher `number` of a run which has no checkpoint for it.

    It is trained on all training images: `data.fraction`, `data.omit` and parts are the student's alone, who sees them
    as a transfer set. The other earlier runs (assistants, generations, the plain run) see what the student sees.
    """
    return dataclasses.replace(
        config,
        data=config.data.on_all_images(),
        scheme=Supervised(),
        model=Model(name=name),
        teacher=type(config.teacher)(),
        losses=type(config.losses)(),
        train=dataclasses.replace(config.train, epochs=config.teacher.epochs or config.train.epochs, ema=None),
        seed=config.teacher.seed + number,
    )


def assistants(config: Config) -> list[Config]:
    """Return the run of the last assistant, which the assistants before it teach, or the teacher if there is none."""
    *before, last = config.scheme.assistants
    scheme = (
        dataclasses.replace(config.scheme, assistants=before)
        if before
        else OfflineKD(alpha=config.scheme.alpha, hard=config.scheme.hard)
    )
    train = dataclasses.replace(config.train, epochs=config.teacher.epochs or config.train.epochs, ema=None)
    seed = config.teacher.seed
    return [dataclasses.replace(config, scheme=scheme, model=Model(name=last), train=train, seed=seed)]


def generations(config: Config) -> list[Config]:
    """Return the runs of generations 1 to k - 1, the last of which teaches generation k; the plain run teaches 1."""
    count = config.scheme.generations
    if count == 1:
        return plain_run(config)
    schemes = [dataclasses.replace(config.scheme, generations=number) for number in range(1, count)]
    return [dataclasses.replace(config, scheme=scheme) for scheme in schemes]


def plain_run(config: Config) -> list[Config]:
    """Return the supervised run of the same network with the same seed."""
    return [dataclasses.replace(config, scheme=Supervised(), losses=type(config.losses)())]


def peers(config: Config) -> list[Config]:
    """Return the runs of the teachers of a student that is trained already.

    Raises:
        UserError: it is not.
    """
    if config.model.checkpoint is None and not config.model.pretrained:
        raise UserError(
            f"method={config.scheme.method} goes on from a trained student: give model.checkpoint=FILE_OR_RUN_FOLDER"
        )
    return teachers(config)


EARLIER: dict[type[Method], Earlier] = {
    OfflineKD: teachers,
    OfflineTAKD: assistants,
    OfflineCAMKD: teachers,
    OfflinePartial: teachers,
    OfflineDPKD: peers,
    SelfBAN: generations,
    SelfTfKD: plain_run,
    Topology: teachers,
}
"""Who knows the earlier runs of each class of options; the others need none."""
