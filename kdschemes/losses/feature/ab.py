"""Activation boundaries: AB (Heo et al. 2019a)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kdschemes.core.loss import Endpoint, Gather
from kdschemes.core.precision import full_precision
from kdschemes.core.types import Batch, DataSpec, Output
from kdschemes.losses.stages import StageLoss, before_relu, map_shapes, match_size


@full_precision
def ab(
    student: Float[Tensor, "n c hs ws"], teacher: Float[Tensor, "n c ht wt"], *, margin: float = 1.0
) -> Float[Tensor, ""]:
    r"""Return the mean over samples of $\sum_{chw} \max(0, \mu - \mathrm{sgn}(t)\, s)^2$ of pre-ReLU maps, sgn(0) = -1.

    Heo et al. 2019, "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons": a squared
    hinge loss that makes every student neuron active, by the margin $\mu$, where the teacher's is, and inactive
    elsewhere. Sum over channels and positions, as in torchdistill; RepDistiller's extra factor 3/1000 and the stage
    weights are up to the caller. Maps of different size are first average-pooled to the smaller height and width. Only
    the sign of t matters, so a map after the ReLU works, too, and gradients flow only to the student.
    """
    assert margin > 0, margin
    student, teacher = match_size(student, teacher)
    missed = torch.where(teacher > 0, margin - student, margin + student).relu()
    missed = torch.where(teacher.isnan(), teacher.detach(), missed)
    return missed.square().sum(dim=(1, 2, 3)).mean()


class ActivationLoss(StageLoss[Any]):
    """Weighted sum over stage pairs of `pair_loss` of the maps before the last ReLU.

    Pair i of L has weight 2^(i - L + 1): 1 for the deepest, half of that for the one before. Stages that do not end in
    a ReLU use their features. The larger map is average-pooled to the smaller size, then the connector (a learned 1x1
    convolution and batch norm) projects the student's to the teacher's channels. Square tokens count as a map, a vector
    as a 1x1 map.
    """

    reads_preactivations = True

    def __init__(self, options: Any, *, student: Endpoint, teacher: Endpoint, data_spec: DataSpec) -> None:
        super().__init__(options, student=student, teacher=teacher, data_spec=data_spec)
        self.connectors = nn.ModuleList()
        for pair in self.pairs:
            (before, *_), (after, *_) = map_shapes(options.name, pair, student, teacher)
            convolution = nn.Conv2d(before, after, 1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            self.connectors.append(nn.Sequential(convolution, nn.BatchNorm2d(after)))

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        values = []
        for number, ((a, b), connector) in enumerate(zip(self.pairs, self.connectors, strict=True)):
            ours, theirs = match_size(before_relu(student, a), before_relu(teacher, b))
            value = self.pair_loss(number, connector(ours), theirs, gather)
            values.append(value * 0.5 ** (len(self.pairs) - 1 - number))
        total: Tensor = self.options.scale * torch.stack(values).sum()
        return total


class AB(ActivationLoss):
    """Weighted sum over stage pairs of `ab`, as in `ActivationLoss`."""

    def pair_loss(self, number: int, student: Tensor, teacher: Tensor, gather: Gather) -> Float[Tensor, ""]:
        return ab(student, teacher, margin=self.options.margin)
