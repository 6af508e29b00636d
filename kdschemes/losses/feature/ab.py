"""Activation boundaries: AB (Heo et al. 2019a)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kdschemes.config.losses import feature as config
from kdschemes.core.loss import Gather, Loss, Side
from kdschemes.core.precision import full_precision
from kdschemes.core.types import Batch, Output, Task
from kdschemes.losses.stages import as_map_shape, before_relu, match_size, match_stages

_LOG_SQRT_2PI = 0.9189385332046727

_TINY_MASS = 1e-3

_DEVIATIONS_WHERE_TINY = 3.0


@full_precision
def ab(
    student: Float[Tensor, "n c hs ws"], teacher: Float[Tensor, "n c ht wt"], *, margin: float = 1.0
) -> Float[Tensor, ""]:
    r"""Return the mean over samples of $\sum_{chw} \max(0, \mu - \mathrm{sgn}(t)\, s)^2$, sgn(0) = -1.

    Heo et al. 2019, "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons": a squared
    hinge that asks of every neuron of the student to be active, by the margin $\mu$, where the teacher's is, and
    inactive elsewhere. Sum over channels and positions, as torchdistill; RepDistiller's further factor 3/1000 and the
    weights of the stages belong to the caller. Maps of different size are average-pooled to the smaller height and
    the smaller width first. Only the sign of t counts, so gradients flow to the student alone.

    Args:
        student: maps before the activation, brought to the teacher's channels.
        teacher: maps before the activation (those after a ReLU have the same sign).
        margin: mu > 0.
    """
    assert margin > 0, margin
    student, teacher = match_size(student, teacher)
    missed = torch.where(teacher > 0, margin - student, margin + student).relu()
    return missed.square().sum(dim=(1, 2, 3)).mean()


class AB(Loss[config.AB]):
    """Weighted sum over stage pairs of `ab`, after a connector on the student's map.

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
            ours, theirs = match_size(before_relu(student, a), before_relu(teacher, b))
            values.append(ab(connector(ours), theirs, margin=self.options.margin))
        return self.options.scale * _halved_towards_shallow(values)


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
