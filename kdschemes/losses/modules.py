"""Losses between two outputs: they pick entries, hold projections and call the functions beside them.

Everything that can be wrong for a pair of networks is found when a loss is built.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kdschemes.config import losses as config
from kdschemes.errors import UserError
from kdschemes.losses import feature, relation, response
from kdschemes.losses.stages import StageShapes, map_shape, match_stages, to_map
from kdschemes.outputs import Batch, Output

Gather = Callable[[Tensor], Tensor]
"""Turns this process's `[n, ...]` into the micro-batch of all processes, `[micro_size, ...]`."""


class Loss(nn.Module, ABC):
    """A scalar of the student's and the teacher's output, a mean over the batch.

    `spans_batch` says that the value depends on pairs of samples: such a loss applies `gather` to the tensors that it
    compares, and no other loss does. Parameters are projections of the student's features only.

    Args:
        options: the loss's dataclass in `kdschemes.config.losses`.
        student: feature shapes by stage, shallow to deep.
        teacher: feature shapes by stage, shallow to deep.
        classes: the number of logits.

    Raises:
        UserError: the loss cannot be defined for the two.
    """

    spans_batch: bool = False

    @abstractmethod
    def __init__(self, options: Any, *, student: StageShapes, teacher: StageShapes, classes: int) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        """Return the unweighted value. Gradients flow to both outputs; the caller detaches the teacher."""


class KD(Loss):
    """`response.kd` of the logits."""

    def __init__(self, options: config.KD, *, student: StageShapes, teacher: StageShapes, classes: int) -> None:
        super().__init__(options, student=student, teacher=teacher, classes=classes)
        _check_classes(options.name, classes)
        self.temperature = options.temperature

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        return response.kd(student.logits, teacher.logits, temperature=self.temperature)


class LogitMSE(Loss):
    """`response.logit_mse` of the logits."""

    def __init__(self, options: config.LogitMSE, *, student: StageShapes, teacher: StageShapes, classes: int) -> None:
        super().__init__(options, student=student, teacher=teacher, classes=classes)
        _check_classes(options.name, classes)

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        return response.logit_mse(student.logits, teacher.logits)


class Hint(Loss):
    """Sum over stage pairs of `feature.hint`, after a learned regressor on the student's features.

    A pair of equal shapes has no regressor. Otherwise it is affine and trained with the student: a linear layer for
    two vectors (or as many tokens), a 1x1 convolution with bias for maps, the larger of which is average-pooled to
    the smaller first. Square tokens count as a map. (FitNets' own regressor is a larger convolution; RepDistiller
    always has one, followed by batch norm and ReLU.)
    """

    def __init__(self, options: config.Hint, *, student: StageShapes, teacher: StageShapes, classes: int) -> None:
        super().__init__(options, student=student, teacher=teacher, classes=classes)
        self.pairs = match_stages(options.stages, student, teacher)
        self.regressors = nn.ModuleList(_regressor(a, student[a], b, teacher[b]) for a, b in self.pairs)

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        values = []
        for (a, b), regressor in zip(self.pairs, self.regressors, strict=True):
            ours, theirs = student.features[a], teacher.features[b]
            if isinstance(regressor, nn.Conv2d):
                ours, theirs = feature.match_size(to_map(ours), to_map(theirs))
            values.append(feature.hint(regressor(ours), theirs))
        return torch.stack(values).sum()


class AT(Loss):
    """Sum over stage pairs of `feature.attention_transfer`. Square tokens count as a map.

    Maps of one position have nothing to attend to (the term would always be 0): `stages=all` leaves such pairs out,
    other choices of them are refused.
    """

    def __init__(self, options: config.AT, *, student: StageShapes, teacher: StageShapes, classes: int) -> None:
        super().__init__(options, student=student, teacher=teacher, classes=classes)
        self.pairs: list[tuple[str, str]] = []
        matched = match_stages(options.stages, student, teacher)
        for a, b in matched:
            _, height, width = map_shape("at", a, student[a])
            _, their_height, their_width = map_shape("at", b, teacher[b])
            if min(height, their_height) * min(width, their_width) > 1:
                self.pairs.append((a, b))
            elif options.stages != "all" or len(matched) == 1:
                raise UserError(
                    f"at needs more than one position, but '{a}:{b}' compares 1x1 maps and would always be 0: "
                    "pair other stages by losses.feature.stages=[...]"
                )
        if not self.pairs:
            raise UserError("at needs more than one position, but every stage pair compares 1x1 maps")

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        maps = [(to_map(student.features[a]), to_map(teacher.features[b])) for a, b in self.pairs]
        return torch.stack([feature.attention_transfer(ours, theirs) for ours, theirs in maps]).sum()


class RKD(Loss):
    """Sum over stage pairs of the weighted `relation.rkd_distance` and `relation.rkd_angle`.

    Embeddings are the stages' features averaged over positions, gathered over all processes.
    """

    spans_batch = True

    def __init__(self, options: config.RKD, *, student: StageShapes, teacher: StageShapes, classes: int) -> None:
        super().__init__(options, student=student, teacher=teacher, classes=classes)
        if options.distance == options.angle == 0:
            raise UserError("rkd with distance=0 and angle=0 compares nothing: give one of them a positive weight")
        self.pairs = match_stages(options.stages, student, teacher)
        self.distance = options.distance
        self.angle = options.angle

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        values = []
        for a, b in self.pairs:
            ours, theirs = gather(_embedding(student.features[a])), gather(_embedding(teacher.features[b]))
            if self.distance:
                values.append(self.distance * relation.rkd_distance(ours, theirs))
            if self.angle:
                values.append(self.angle * relation.rkd_angle(ours, theirs))
        return torch.stack(values).sum()


class FSP(Loss):
    """Sum over consecutive stage pairs of `relation.fsp`. Square tokens count as a map.

    Stages of the student with another number of channels than the teacher's pass a learned 1x1 convolution first.
    """

    def __init__(self, options: config.FSP, *, student: StageShapes, teacher: StageShapes, classes: int) -> None:
        super().__init__(options, student=student, teacher=teacher, classes=classes)
        self.pairs = match_stages(options.stages, student, teacher)
        if len(self.pairs) < 2:
            raise UserError(
                f"fsp needs at least two stage pairs, got {', '.join(f'{a}:{b}' for a, b in self.pairs)}: "
                "set losses.relation.stages=all or list two pairs"
            )
        shapes = [(map_shape("fsp", a, student[a]), map_shape("fsp", b, teacher[b])) for a, b in self.pairs]
        self.adapters = nn.ModuleList(
            nn.Identity() if ours[0] == theirs[0] else nn.Conv2d(ours[0], theirs[0], 1) for ours, theirs in shapes
        )

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        ours = [adapt(to_map(student.features[a])) for (a, _), adapt in zip(self.pairs, self.adapters, strict=True)]
        theirs = [to_map(teacher.features[b]) for _, b in self.pairs]
        return torch.stack(
            [relation.fsp(s, t) for s, t in zip(pairwise(ours), pairwise(theirs), strict=True)],
        ).sum()


MODULES: dict[type, type[Loss]] = {
    config.KD: KD,
    config.LogitMSE: LogitMSE,
    config.Hint: Hint,
    config.AT: AT,
    config.RKD: RKD,
    config.FSP: FSP,
}
"""The module of every loss in the tables of `kdschemes.config.losses`."""


def build_loss(options: Any, *, student: StageShapes, teacher: StageShapes, classes: int) -> Loss:
    """Return the loss that `options` names, its projections shaped for the two networks.

    Raises:
        UserError: a stage that is not there, a loss that cannot be defined for the two.
    """
    return MODULES[type(options)](options, student=student, teacher=teacher, classes=classes)


def _check_classes(loss: str, classes: int) -> None:
    if classes < 2:
        raise UserError(f"{loss} needs at least 2 classes, the task has {classes}: choose a feature or relation loss")


def _regressor(a: str, ours: tuple[int, ...], b: str, theirs: tuple[int, ...]) -> nn.Module:
    if ours == theirs:
        return nn.Identity()
    if len(ours) == len(theirs) and len(ours) < 3 and ours[:-1] == theirs[:-1]:
        return nn.Linear(ours[-1], theirs[-1])
    return nn.Conv2d(map_shape("hint", a, ours)[0], map_shape("hint", b, theirs)[0], 1)


def _embedding(features: Float[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
    """Average a map or tokens over positions, in float32 at least; a vector stays."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    if features.dim() == 2:
        return features.to(dtype)
    return features.mean(dim=(2, 3) if features.dim() == 4 else 1, dtype=dtype)
