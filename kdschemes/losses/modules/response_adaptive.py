"""Losses between logits whose temperature, weights or targets adapt to samples or to training."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kdschemes.config.losses import response_adaptive as config
from kdschemes.losses import response
from kdschemes.losses.modules.base import Gather, LogitLoss, Loss, Side, embedding
from kdschemes.losses.stages import match_stages
from kdschemes.outputs import Batch, Output, Progress
from kdschemes.task import Task


class TTM(LogitLoss[config.TTM]):
    """`response.ttm` of the logits."""

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        z, v = self.logits(student, teacher)
        return response.ttm(z, v, temperature=self.options.temperature)


class WTTM(LogitLoss[config.WTTM]):
    """`response.wttm` of the logits."""

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        z, v = self.logits(student, teacher)
        return response.wttm(z, v, temperature=self.options.temperature)


class CTKD(LogitLoss[config.CTKD]):
    """`response.ctkd` of the logits at a temperature that is a parameter, trained by reversed gradients."""

    def __init__(self, options: config.CTKD, *, student: Side, teacher: Side, task: Task) -> None:
        super().__init__(options, student=student, teacher=teacher, task=task)
        self.theta = nn.Parameter(torch.tensor(options.initial))
        self.strength = response.curriculum_strength(0.0, epochs=options.curriculum_epochs)

    def follow(self, progress: Progress) -> None:
        self.strength = response.curriculum_strength(progress.epoch, epochs=self.options.curriculum_epochs)

    @property
    def temperature(self) -> Float[Tensor, ""]:
        return response.learned_temperature(
            self.theta, start=self.options.start, span=self.options.span, strength=self.strength
        )

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        return response.ctkd(*self.logits(student, teacher), temperature=self.temperature)


class MLKD(LogitLoss[config.MLKD]):
    """`response.mlkd` of the logits of all processes."""

    spans_batch = True

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        z, v = self.logits(student, teacher)
        return response.mlkd(
            gather(z),
            gather(v),
            temperatures=self.options.temperatures,
            instance=self.options.instance,
            batch=self.options.batch,
            classes=self.options.classes,
            masks=self.options.masks,
        )


class SRD(LogitLoss[config.SRD]):
    """Sum over stage pairs of `response.srd_features`, plus the divergence of the logits, as in `response.srd`.

    Features are averaged over positions. The student's pass a learned linear layer, then both pass batch norm
    without affine parameters, over the samples of all processes (which would cancel a bias of the layer).
    """

    spans_batch = True

    def __init__(self, options: config.SRD, *, student: Side, teacher: Side, task: Task) -> None:
        super().__init__(options, student=student, teacher=teacher, task=task)
        self.pairs = match_stages(options.stages, student.features, teacher.features)
        widths = [(_width(student.features[a]), _width(teacher.features[b])) for a, b in self.pairs]
        self.projectors = nn.ModuleList(nn.Linear(ours, theirs, bias=False) for ours, theirs in widths)
        self.student_norms = nn.ModuleList(_norm(theirs, options.norm_epsilon) for _, theirs in widths)
        self.teacher_norms = nn.ModuleList(_norm(theirs, options.norm_epsilon) for _, theirs in widths)

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        alone = self.training and (batch.micro_size or len(batch)) == 1
        z, v = self.logits(student, teacher)
        pairs = []
        for (a, b), project, *norms in zip(
            self.pairs, self.projectors, self.student_norms, self.teacher_norms, strict=True
        ):
            features = project(embedding(student.features[a])), embedding(teacher.features[b])
            ours, theirs = (gather(0.0 * x if alone else norm(x)) for norm, x in zip(norms, features, strict=True))
            pairs.append((ours, theirs))
        logits = {"student_logits": gather(z), "teacher_logits": gather(v)}
        value = response.srd(*pairs[-1], **logits, exponent=self.options.exponent, temperature=self.options.temperature)
        for ours, theirs in pairs[:-1]:
            value = value + response.srd_features(ours, theirs, exponent=self.options.exponent)
        return value


class USKD(LogitLoss[config.USKD]):
    """`response.uskd` of the student's logits of all processes; the teacher is not looked at.

    The weak logits are those of a linear layer on the features of one stage, averaged over positions.
    """

    spans_batch = True

    def __init__(self, options: config.USKD, *, student: Side, teacher: Side, task: Task) -> None:
        super().__init__(options, student=student, teacher=teacher, task=task)
        self.stage = _stage(options.stage, student)
        self.weak = nn.Linear(_width(student.features[self.stage]), task.num_classes)

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        weak = self.weak(embedding(student.features[self.stage]))
        return response.uskd(
            gather(student.logits),
            gather(weak),
            gather(batch.labels[:, None]).squeeze(1),
            alpha=self.options.alpha,
            beta=self.options.beta,
            mu=self.options.mu,
            rank=self.options.rank,
            smoothing=self.options.smoothing,
        )


RESPONSE_ADAPTIVE: dict[type, type[Loss[Any]]] = {
    config.TTM: TTM,
    config.WTTM: WTTM,
    config.CTKD: CTKD,
    config.MLKD: MLKD,
    config.SRD: SRD,
    config.USKD: USKD,
}


def _width(shape: tuple[int, ...]) -> int:
    return shape[0] if len(shape) == 3 else shape[-1]


def _norm(width: int, epsilon: float) -> nn.Module:
    return nn.BatchNorm1d(width, eps=epsilon, affine=False)


def _stage(choice: str, student: Side) -> str:
    """Return the name of the student's stage; of a single one, penultimate is that one."""
    stages = {"penultimate": "all", "middle": "middle"}.get(choice, [f"{choice}:{choice}"])
    return match_stages(stages, student.features, student.features)[-2:][0][0]
