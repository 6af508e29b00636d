"""Losses between channels, distributions of features, and features read by the teacher's classifier."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from kdschemes.config.losses import feature_channels as config
from kdschemes.errors import UserError
from kdschemes.losses import feature
from kdschemes.losses.modules.base import Gather, Loss, Side, embedding
from kdschemes.losses.modules.feature_classifier import FEATURE_CLASSIFIER
from kdschemes.losses.stages import as_map, as_map_shape, map_shape, match_stages, to_map
from kdschemes.outputs import Batch, Output
from kdschemes.task import Task


class CWD(Loss[config.CWD]):
    """Sum over stage pairs of `feature.cwd`. Square tokens count as a map.

    Where channels differ the student's map passes a learned 1x1 convolution first. Maps of one position are a
    distribution without freedom (the term would always be 0): `stages=all` leaves such pairs out, other choices of
    them are refused.
    """

    def __init__(self, options: config.CWD, *, student: Side, teacher: Side, task: Task) -> None:
        super().__init__(options, student=student, teacher=teacher, task=task)
        matched = match_stages(options.stages, student.features, teacher.features)
        shapes = {
            (a, b): (map_shape("cwd", a, student.features[a]), map_shape("cwd", b, teacher.features[b]))
            for a, b in matched
        }
        self.pairs = [pair for pair in matched if _common_positions(*shapes[pair]) > 1]
        if not self.pairs or (options.stages != "all" and len(self.pairs) < len(matched)):
            a, b = next(pair for pair in matched if pair not in self.pairs)
            raise UserError(
                f"cwd needs more than one position, but '{a}:{b}' compares 1x1 maps and would always be 0: "
                "pair other stages by losses.feature.stages=[...]"
            )
        self.projections = nn.ModuleList(_projection(*shapes[pair]) for pair in self.pairs)

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        values = []
        for (a, b), projection in zip(self.pairs, self.projections, strict=True):
            ours, theirs = projection(to_map(student.features[a])), to_map(teacher.features[b])
            values.append(feature.cwd(ours, theirs, temperature=self.options.temperature))
        return torch.stack(values).sum()


class PKD(Loss[config.PKD]):
    """Sum over stage pairs of `feature.pkd`, of maps gathered over all processes.

    Where channels differ the student's map passes a learned 1x1 convolution first. Square tokens count as a map, a
    vector as a map of one position.
    """

    spans_batch = True

    def __init__(self, options: config.PKD, *, student: Side, teacher: Side, task: Task) -> None:
        super().__init__(options, student=student, teacher=teacher, task=task)
        self.pairs = match_stages(options.stages, student.features, teacher.features)
        self.projections = nn.ModuleList(
            _projection(as_map_shape("pkd", a, student.features[a]), as_map_shape("pkd", b, teacher.features[b]))
            for a, b in self.pairs
        )

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        values = []
        for (a, b), projection in zip(self.pairs, self.projections, strict=True):
            ours, theirs = projection(as_map(student.features[a])), as_map(teacher.features[b])
            values.append(feature.pkd(*map(gather, feature.match_size(ours, theirs)), eps=self.options.eps))
        return torch.stack(values).sum()


class ICKD(Loss[config.ICKD]):
    """Sum over stage pairs of `feature.ickd`, after a learned 1x1 convolution and batch norm on the student's map.

    Square tokens count as a map, a vector as a map of one position.
    """

    def __init__(self, options: config.ICKD, *, student: Side, teacher: Side, task: Task) -> None:
        super().__init__(options, student=student, teacher=teacher, task=task)
        self.pairs = match_stages(options.stages, student.features, teacher.features)
        self.projections = nn.ModuleList()
        for a, b in self.pairs:
            ours = as_map_shape("ickd", a, student.features[a])
            theirs = as_map_shape("ickd", b, teacher.features[b])
            convolution = nn.Conv2d(ours[0], theirs[0], 1, bias=False)
            self.projections.append(nn.Sequential(convolution, nn.BatchNorm2d(theirs[0])))

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        values = []
        for (a, b), projection in zip(self.pairs, self.projections, strict=True):
            values.append(feature.ickd(projection(as_map(student.features[a])), as_map(teacher.features[b])))
        return torch.stack(values).sum()


class PAD(Loss[config.PAD]):
    """Sum over stage pairs of `feature.pad` of the stages' features averaged over positions.

    The log-variance is a learned linear layer and batch norm of the student's embedding; a batch of one sample is
    normalised by the running statistics. Where widths differ, another linear layer brings the student's embedding to
    the teacher's.
    """

    def __init__(self, options: config.PAD, *, student: Side, teacher: Side, task: Task) -> None:
        super().__init__(options, student=student, teacher=teacher, task=task)
        self.pairs = match_stages(options.stages, student.features, teacher.features)
        self.projections, self.variances = nn.ModuleList(), nn.ModuleList()
        for a, b in self.pairs:
            ours, theirs = _width(student.features[a]), _width(teacher.features[b])
            self.projections.append(nn.Identity() if ours == theirs else nn.Linear(ours, theirs))
            self.variances.append(nn.Sequential(nn.Linear(ours, theirs, bias=False), nn.BatchNorm1d(theirs)))

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        values = []
        for (a, b), projection, variance in zip(self.pairs, self.projections, self.variances, strict=True):
            ours, theirs = embedding(student.features[a]), embedding(teacher.features[b])
            values.append(
                feature.pad(projection(ours), theirs, log_variance=_log_variance(variance, ours), eps=self.options.eps)
            )
        return torch.stack(values).sum()


FEATURE_CHANNELS: dict[type, type[Loss[Any]]] = {
    config.CWD: CWD,
    config.PKD: PKD,
    config.PAD: PAD,
    config.ICKD: ICKD,
    **FEATURE_CLASSIFIER,
}


def _common_positions(ours: tuple[int, int, int], theirs: tuple[int, int, int]) -> int:
    return min(ours[1], theirs[1]) * min(ours[2], theirs[2])


def _projection(ours: tuple[int, int, int], theirs: tuple[int, int, int]) -> nn.Module:
    return nn.Identity() if ours[0] == theirs[0] else nn.Conv2d(ours[0], theirs[0], 1)


def _log_variance(layers: nn.Module, embeddings: Tensor) -> Tensor:
    assert isinstance(layers, nn.Sequential)
    linear, norm = layers
    predicted: Tensor = linear(embeddings)
    if type(norm) is nn.BatchNorm1d and norm.training and len(predicted) == 1:
        mean, variance = norm.running_mean, norm.running_var
        return functional.batch_norm(predicted, mean, variance, norm.weight, norm.bias, eps=norm.eps)
    normalised: Tensor = norm(predicted)
    return normalised


def _width(shape: tuple[int, ...]) -> int:
    return shape[0] if len(shape) == 3 else shape[-1]
