"""Losses between relations."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kdschemes.config.losses import relation as config
from kdschemes.errors import UserError
from kdschemes.losses import relation
from kdschemes.losses.modules.base import Gather, Loss, Side, embedding
from kdschemes.losses.stages import map_shape, match_stages, to_map
from kdschemes.outputs import Batch, Output
from kdschemes.task import Task


class RKD(Loss[config.RKD]):
    """Sum over stage pairs of the weighted `relation.rkd_distance` and `relation.rkd_angle`.

    Embeddings are the stages' features averaged over positions, gathered over all processes.
    """

    spans_batch = True

    def __init__(self, options: config.RKD, *, student: Side, teacher: Side, task: Task) -> None:
        super().__init__(options, student=student, teacher=teacher, task=task)
        if options.distance == options.angle == 0:
            raise UserError("rkd with distance=0 and angle=0 compares nothing: give one of them a positive weight")
        self.pairs = match_stages(options.stages, student.features, teacher.features)
        self.distance = options.distance
        self.angle = options.angle

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        values = []
        for a, b in self.pairs:
            ours, theirs = gather(embedding(student.features[a])), gather(embedding(teacher.features[b]))
            if self.distance:
                values.append(self.distance * relation.rkd_distance(ours, theirs))
            if self.angle:
                values.append(self.angle * relation.rkd_angle(ours, theirs))
        return torch.stack(values).sum()


class FSP(Loss[config.FSP]):
    """Sum over consecutive stage pairs of `relation.fsp`. Square tokens count as a map.

    Stages of the student with another number of channels than the teacher's pass a learned 1x1 convolution first.
    """

    def __init__(self, options: config.FSP, *, student: Side, teacher: Side, task: Task) -> None:
        super().__init__(options, student=student, teacher=teacher, task=task)
        self.pairs = match_stages(options.stages, student.features, teacher.features)
        if len(self.pairs) < 2:
            raise UserError(
                f"fsp needs at least two stage pairs, got {', '.join(f'{a}:{b}' for a, b in self.pairs)}: "
                "set losses.relation.stages=all or list two pairs"
            )
        shapes = [
            (map_shape("fsp", a, student.features[a]), map_shape("fsp", b, teacher.features[b])) for a, b in self.pairs
        ]
        self.adapters = nn.ModuleList(
            nn.Identity() if ours[0] == theirs[0] else nn.Conv2d(ours[0], theirs[0], 1) for ours, theirs in shapes
        )

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        ours = [adapt(to_map(student.features[a])) for (a, _), adapt in zip(self.pairs, self.adapters, strict=True)]
        theirs = [to_map(teacher.features[b]) for _, b in self.pairs]
        return torch.stack(
            [relation.fsp(s, t) for s, t in zip(pairwise(ours), pairwise(theirs), strict=True)],
        ).sum()


RELATION: dict[type, type[Loss[Any]]] = {config.RKD: RKD, config.FSP: FSP}
