"""The runs that must finish before a run; each is a separate run that other runs reuse. Nothing here imports torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from kdschemes.config import TEACHER, Config, Model, Teacher, Train
from kdschemes.config.plugins import needed
from kdschemes.config.schemes import Method
from kdschemes.config.schemes.base import Prerequisite
from kdschemes.config.schemes.supervised import Supervised
from kdschemes.errors import UserError


def prerequisite_runs(config: Config) -> list[Config]:
    """Return, in order, the runs that must finish first because their reported networks teach this run.

    They are the method's own prerequisites; if it has none, the supervised runs that train the teachers, unless the
    user gives weights for them.

    Raises:
        UserError: the method continues training a student, but none is given.
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
    """Return `config` with its prerequisite runs, stored in `folders` (None: not trained yet), as the teachers."""
    models = [run.model for run in prerequisite_runs(config)]
    teacher = dataclasses.replace(
        config.teacher,
        name=[model.name for model in models],
        checkpoint=list(folders) if folders is not None else None,
        pretrained=False,
        **_input_of(models[0]),
    )
    return dataclasses.replace(config, teacher=teacher)


def prerequisite_models(method: Method) -> Iterator[str]:
    """Yield the models of a method's prerequisites, recursively, in training order."""
    for run in method.prerequisites():
        yield from prerequisite_models(run.scheme)
        if run.model is not None:
            yield run.model


def _with_changes(config: Config, run: Prerequisite) -> Config:
    losses = config.losses if run.scheme.uses_losses else type(config.losses)()
    data = config.data.labelled() if run.scheme.name == "supervised" else config.data
    changed = dataclasses.replace(config, scheme=run.scheme, losses=losses, resume_from=None, data=data)
    return changed if run.model is None else _as_teacher(changed, Model(name=run.model), 0)


def _teacher_run(config: Config, name: str, number: int) -> Config:
    """Return the supervised run that trains teacher `number` of a run without a checkpoint for it.

    It uses all training images: `data.train_fraction`, `data.exclude_classes` and partitions only restrict the
    student's transfer set. The other prerequisites (assistants, generations, the plain run) see what the student sees.
    It needs no plugin that adds a method or a loss: a change of one does not train it again.
    """
    return dataclasses.replace(
        _as_teacher(config, Model(name=name, **_input_of(config.teacher)), number),
        data=config.data.on_all_images(),
        scheme=Supervised(),
        teacher=type(config.teacher)(),
        losses=type(config.losses)(),
        plugins=needed(config.plugins, name, config.data.name),
    )


def _input_of(options: Model | Teacher) -> dict[str, Any]:
    return {key: getattr(options, key) for key in ("mean", "std", "image_size", "kwargs", "stages")}


def _as_teacher(config: Config, model: Model, number: int) -> Config:
    own = config.teacher
    default = Train()
    student_only = {key: getattr(default, key) for key in ("ema", "label_smoothing", "class_weights", "patience")}
    train = dataclasses.replace(config.train, epochs=own.epochs, batch_size=own.batch_size, **student_only)
    return dataclasses.replace(
        config, model=model, optim=own.optim, train=train, seed=own.seed + number, resume_from=None
    )
