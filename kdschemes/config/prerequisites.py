"""The runs that a run needs first: each is a run of its own, which other runs find again. Nothing imports torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from kdschemes.config import TEACHER, Config, Model
from kdschemes.config.schemes import Method
from kdschemes.config.schemes.base import Prerequisite
from kdschemes.config.schemes.supervised import Supervised
from kdschemes.errors import UserError


def prerequisite_runs(config: Config) -> list[Config]:
    """Return the runs whose reported networks teach this one and that have to be finished first, in order.

    They are the method's own prerequisites; without any, the supervised runs that train the teachers, where the user
    gives no weights for them.

    Raises:
        UserError: the method continues the training of a student, and there is none.
    """
    scheme = config.scheme
    if scheme.continues_training and config.model.checkpoint is None and not config.model.pretrained:
        raise UserError(
            f"method={scheme.method} continues from a trained student: give model.checkpoint=FILE_OR_RUN_FOLDER"
        )
    runs = [_with_changes(config, run) for run in scheme.prerequisites()]
    if not runs and scheme.uses_teacher and config.teacher.checkpoint is None and not config.teacher.pretrained:
        names = config.teacher.name if isinstance(config.teacher.name, list) else [config.teacher.name]
        runs = [_teacher_run(config, name, number) for number, name in enumerate(names)]
    return [dataclasses.replace(run, job_type=TEACHER) for run in runs]


def with_teachers(config: Config, folders: Sequence[str] | None) -> Config:
    """Return a configuration whose teachers are its prerequisite runs, in these folders (None: not trained yet)."""
    names = [run.model.name for run in prerequisite_runs(config)]
    checkpoint = list(folders) if folders is not None else None
    teacher = dataclasses.replace(config.teacher, name=names, checkpoint=checkpoint, pretrained=False)
    return dataclasses.replace(config, teacher=teacher)


def prerequisite_models(method: Method) -> Iterator[str]:
    """Yield the models that a method's prerequisites name, and theirs, in the order in which they are trained."""
    for run in method.prerequisites():
        yield from prerequisite_models(run.scheme)
        if run.model is not None:
            yield run.model


def _with_changes(config: Config, run: Prerequisite) -> Config:
    losses = config.losses if run.scheme.uses_losses else type(config.losses)()
    changed = dataclasses.replace(config, scheme=run.scheme, losses=losses)
    return changed if run.model is None else _as_teacher(changed, run.model, 0)


def _teacher_run(config: Config, name: str, number: int) -> Config:
    """Return the supervised run that trains teacher `number` of a run which has no checkpoint for it.

    It is trained on all training images: `data.train_fraction`, `data.exclude_classes` and partitions choose the
    student's transfer set. The other prerequisites (assistants, generations, the plain run) see what the student sees.
    """
    return dataclasses.replace(
        _as_teacher(config, name, number),
        data=config.data.on_all_images(),
        scheme=Supervised(),
        teacher=type(config.teacher)(),
        losses=type(config.losses)(),
    )


def _as_teacher(config: Config, name: str, number: int) -> Config:
    train = dataclasses.replace(config.train, epochs=config.teacher.epochs or config.train.epochs, ema=None)
    return dataclasses.replace(config, model=Model(name=name), train=train, seed=config.teacher.seed + number)
