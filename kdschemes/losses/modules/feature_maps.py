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
from kdschemes.losses.modules.feature_activation import FEATURE_ACTIVATION
from kdschemes.losses.modules.feature_factor import FEATURE_FACTOR
from kdschemes.losses.modules.feature_review import FEATURE_REVIEW
from kdschemes.losses.stages import as_map_shape, map_shape, match_stages, pairs_of_positions, to_map
from kdschemes.models.recombined import as_map
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
        self.pairs = pairs_of_positions("at", options.stages, student.features, teacher.features)

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        maps = [(to_map(student.features[a]), to_map(teacher.features[b])) for a, b in self.pairs]
        form, power, eps = self.options.form, self.options.power, self.options.eps
        return torch.stack(
            [feature.attention_transfer(ours, theirs, form=form, power=power, eps=eps) for ours, theirs in maps]
        ).sum()


class NST(Loss[config.NST]):
    """Sum over stage pairs of `feature.nst`. Square tokens count as a map.

    Channels of one position are all equal (the term would be 0): such pairs are treated as in `AT`.
    """

    def __init__(self, options: config.NST, *, student: Side, teacher: Side, task: Task) -> None:
        super().__init__(options, student=student, teacher=teacher, task=task)
        self.pairs = pairs_of_positions("nst", options.stages, student.features, teacher.features)

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        maps = [(to_map(student.features[a]), to_map(teacher.features[b])) for a, b in self.pairs]
        return torch.stack([feature.nst(ours, theirs) for ours, theirs in maps]).sum()


class VID(Loss[config.VID]):
    """Sum over stage pairs of `feature.vid`, its mean found from the student's map by a learned regressor.

    The regressor is three 1x1 convolutions without bias, of the teacher's channels, with a ReLU between them; it reads
    the student's map after the larger of the two maps was average-pooled to the smaller one's size. The variances are
    trained with it. Square tokens count as a map, a vector as a map of one position.
    """

    def __init__(self, options: config.VID, *, student: Side, teacher: Side, task: Task) -> None:
        super().__init__(options, student=student, teacher=teacher, task=task)
        if options.variance <= options.eps:
            raise UserError(f"vid starts from a variance above eps={options.eps}, not {options.variance}")
        self.pairs = match_stages(options.stages, student.features, teacher.features)
        self.regressors, self.raw_variances = nn.ModuleList(), nn.ParameterList()
        for a, b in self.pairs:
            before = as_map_shape("vid", a, student.features[a])[0]
            width = as_map_shape("vid", b, teacher.features[b])[0]
            first, *others = (nn.Conv2d(c, width, 1, bias=False) for c in (before, width, width))
            self.regressors.append(nn.Sequential(first, *(m for conv in others for m in (nn.ReLU(), conv))))
            self.raw_variances.append(nn.Parameter(feature.vid_raw_variance(options.variance, width, eps=options.eps)))

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        values = []
        for (a, b), regressor, raw in zip(self.pairs, self.regressors, self.raw_variances, strict=True):
            ours, theirs = feature.match_size(as_map(student.features[a]), as_map(teacher.features[b]))
            values.append(feature.vid(regressor(ours), theirs, raw_variance=raw, eps=self.options.eps))
        return torch.stack(values).sum()


FEATURE_MAPS: dict[type, type[Loss[Any]]] = {
    config.Hint: Hint,
    config.AT: AT,
    config.NST: NST,
    config.VID: VID,
    **FEATURE_FACTOR,
    **FEATURE_ACTIVATION,
    **FEATURE_REVIEW,
}


def _regressor(a: str, ours: tuple[int, ...], b: str, theirs: tuple[int, ...]) -> nn.Module:
    if ours == theirs:
        return nn.Identity()
    if len(ours) == len(theirs) and len(ours) < 3 and ours[:-1] == theirs[:-1]:
        return nn.Linear(ours[-1], theirs[-1])
    return nn.Conv2d(map_shape("hint", a, ours)[0], map_shape("hint", b, theirs)[0], 1)
