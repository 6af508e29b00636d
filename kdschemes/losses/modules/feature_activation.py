"""Losses between maps before a stage's last ReLU."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kdschemes.config.losses import feature_maps as config
from kdschemes.errors import UserError
from kdschemes.losses import feature
from kdschemes.losses.modules.base import Gather, Loss, Side
from kdschemes.losses.stages import as_map_shape, match_stages
from kdschemes.models.recombined import as_map
from kdschemes.outputs import Batch, Output
from kdschemes.task import Task


class AB(Loss[config.AB]):
    """Weighted sum over stage pairs of `feature.ab`, after a connector on the student's map.

    Pair i of L weighs 2^(i - L + 1): 1 for the deepest, half of it for the one before. The student's map is the one
    before the stage's last ReLU where it ends in one. The larger map is average-pooled to the smaller one's size, then
    the connector (a learned 1x1 convolution and batch norm) brings the student's to the teacher's channels. Square
    tokens count as a map, a vector as a map of one position.
    """

    reads_preactivations = True

    def __init__(self, options: config.AB, *, student: Side, teacher: Side, task: Task) -> None:
        super().__init__(options, student=student, teacher=teacher, task=task)
        self.pairs = match_stages(options.stages, student.features, teacher.features)
        self.connectors = _connectors("ab", self.pairs, student, teacher)

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        values = []
        for (a, b), connector in zip(self.pairs, self.connectors, strict=True):
            ours, theirs = feature.match_size(before_relu(student, a), before_relu(teacher, b))
            values.append(feature.ab(connector(ours), theirs, margin=self.options.margin))
        return self.options.scale * _halved_towards_shallow(values)


class OFD(Loss[config.OFD]):
    """Weighted sum over stage pairs of `feature.ofd`, after a connector on the student's map.

    Weights, sizes, the student's maps and the connectors are as in `AB`. The teacher's stages must end in a ReLU after
    a batch norm, whose weight and bias give the margins: those at the time when the loss is built.
    """

    reads_preactivations = True

    def __init__(self, options: config.OFD, *, student: Side, teacher: Side, task: Task) -> None:
        super().__init__(options, student=student, teacher=teacher, task=task)
        self.pairs = match_stages(options.stages, student.features, teacher.features)
        if teacher.network is None:
            raise UserError(
                "ofd reads the batch norm before the teacher's ReLU, but what teaches is no network by itself: "
                "choose another feature loss"
            )
        activated = teacher.network.activated
        for number, (_, b) in enumerate(self.pairs):
            if b not in activated:
                raise UserError(
                    f"ofd needs a teacher's stage that ends in batch norm and ReLU, '{b}' does not: "
                    + (f"pair one of {', '.join(activated)}" if activated else "choose another teacher or loss")
                )
            norm = activated[b]
            self.register_buffer(f"margin{number}", feature.ofd_margin(norm.weight, norm.bias))
        self.connectors = _connectors("ofd", self.pairs, student, teacher)

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        values = []
        for number, ((a, b), connector) in enumerate(zip(self.pairs, self.connectors, strict=True)):
            ours, theirs = feature.match_size(before_relu(student, a), teacher.preactivations[b])
            values.append(feature.ofd(connector(ours), theirs, margin=self.get_buffer(f"margin{number}")))
        return self.options.scale * _halved_towards_shallow(values)


FEATURE_ACTIVATION: dict[type, type[Loss[Any]]] = {config.AB: AB, config.OFD: OFD}


def before_relu(output: Output, stage: str) -> Float[Tensor, "n c h w"]:
    """Return a stage's map before its last ReLU, or its features as a map where it does not end in one."""
    return as_map(output.preactivations.get(stage, output.features[stage]))


def _connectors(loss: str, pairs: list[tuple[str, str]], student: Side, teacher: Side) -> nn.ModuleList:
    connectors = nn.ModuleList()
    for a, b in pairs:
        before = as_map_shape(loss, a, student.features[a])[0]
        after = as_map_shape(loss, b, teacher.features[b])[0]
        convolution = nn.Conv2d(before, after, 1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        connectors.append(nn.Sequential(convolution, nn.BatchNorm2d(after)))
    return connectors


def _halved_towards_shallow(values: list[Tensor]) -> Tensor:
    last = len(values) - 1
    return torch.stack([value * 0.5 ** (last - number) for number, value in enumerate(values)]).sum()
