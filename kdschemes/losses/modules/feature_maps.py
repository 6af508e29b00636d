"""Losses between feature maps: their values, their attention, their activation."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kdschemes.config.losses import feature_maps as config
from kdschemes.errors import UserError
from kdschemes.losses import feature
from kdschemes.losses.modules.base import Gather, Loss, Side
from kdschemes.losses.stages import map_shape, match_stages, to_map
from kdschemes.outputs import Batch, Output
from kdschemes.task import Task


class Hint(Loss[config.Hint]):
    """Sum over stage pairs of `feature.hint`, after a learned regressor on the student's features.

    A pair of equal shapes has no regressor. Otherwise it is affine and trained with the student: a linear layer for
    two vectors (or as many tokens), a 1x1 convolution with bias for maps, the larger of which is average-pooled to
    the smaller first. Square tokens count as a map. (FitNets' own regressor is a larger convolution; RepDistiller
    always has one, followed by batch norm and ReLU.)
    """

    def __init__(self, options: config.Hint, *, student: Side, teacher: Side, task: Task) -> None:
        super().__init__(options, student=student, teacher=teacher, task=task)
        self.pairs = match_stages(options.stages, student.features, teacher.features)
        self.regressors = nn.ModuleList(
            _regressor(a, student.features[a], b, teacher.features[b]) for a, b in self.pairs
        )

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        values = []
        for (a, b), regressor in zip(self.pairs, self.regressors, strict=True):
            ours, theirs = student.features[a], teacher.features[b]
            if isinstance(regressor, nn.Conv2d):
                ours, theirs = feature.match_size(to_map(ours), to_map(theirs))
            values.append(feature.hint(regressor(ours), theirs))
        return torch.stack(values).sum()


class AT(Loss[config.AT]):
    """Sum over stage pairs of `feature.attention_transfer`. Square tokens count as a map.

    Maps of one position have nothing to attend to (the term would always be 0): `stages=all` leaves such pairs out,
    other choices of them are refused.
    """

    def __init__(self, options: config.AT, *, student: Side, teacher: Side, task: Task) -> None:
        super().__init__(options, student=student, teacher=teacher, task=task)
        self.pairs: list[tuple[str, str]] = []
        matched = match_stages(options.stages, student.features, teacher.features)
        for a, b in matched:
            _, height, width = map_shape("at", a, student.features[a])
            _, their_height, their_width = map_shape("at", b, teacher.features[b])
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


FEATURE_MAPS: dict[type, type[Loss[Any]]] = {config.Hint: Hint, config.AT: AT}


def _regressor(a: str, ours: tuple[int, ...], b: str, theirs: tuple[int, ...]) -> nn.Module:
    if ours == theirs:
        return nn.Identity()
    if len(ours) == len(theirs) and len(ours) < 3 and ours[:-1] == theirs[:-1]:
        return nn.Linear(ours[-1], theirs[-1])
    return nn.Conv2d(map_shape("hint", a, ours)[0], map_shape("hint", b, theirs)[0], 1)
