"""Curriculum temperature: CTKD (Li et al. 2023)."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from kdschemes.config.losses import response as config
from kdschemes.core.loss import Endpoint, Gather
from kdschemes.core.precision import full_precision
from kdschemes.core.types import Batch, DataSpec, Output, Progress
from kdschemes.losses.response.base import ResponseLoss
from kdschemes.losses.response.divergence import divergence_by_gap
from kdschemes.losses.rows import without_offset


@full_precision
def ctkd(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], *, temperature: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    r"""Return Hinton's loss with a learned temperature: $T^2 \frac1N \sum_n KL(p_T(v_n) \| p_T(z_n))$.

    Li et al. 2023, "Curriculum Temperature for Knowledge Distillation". The same value as `kd`, but the temperature
    also receives gradients, from $T^2$ and both softmaxes (`learned_temperature` reverses them). Mean over the batch;
    gradients flow to both sides.
    """
    student, teacher = without_offset(student), without_offset(teacher)
    log_p, log_q = (functional.log_softmax(x / temperature, dim=1) for x in (teacher, student))
    return temperature.square() * divergence_by_gap((student - teacher) / temperature, log_p, log_q).mean()


def learned_temperature(
    parameter: Float[Tensor, ""], *, start: float, span: float, strength: float
) -> Float[Tensor, ""]:
    r"""Return $T = start + span \cdot sigmoid(\theta)$; the gradient to $\theta$ is multiplied by $-strength$.

    Li et al. 2023: the optimizer minimizes the loss over the student and maximizes it over the temperature.
    """
    assert start > 0, start
    return start + span * torch.sigmoid(reverse_gradient(parameter, strength=strength))


def curriculum_strength(epoch: float, *, epochs: float) -> float:
    r"""Return $\lambda = \frac12 (1 - \cos(\pi \min(e / E, 1)))$, with e the epoch number, counted from 1.

    Li et al. 2023: the strength of the adversary, from 0 to 1, which it reaches in epoch E. As in the authors' code, it
    is constant within an epoch and positive from the first epoch on.

    Args:
        epoch: epochs completed, including the fraction of the current one.
        epochs: E.
    """
    number = math.floor(epoch) + 1
    return 0.5 * (1.0 - math.cos(math.pi * min(number / epochs, 1.0)))


def reverse_gradient(x: Float[Tensor, "*shape"], *, strength: float) -> Float[Tensor, "*shape"]:
    r"""Return x; its gradient is multiplied by $-strength$.

    Ganin, Lempitsky 2015, "Unsupervised Domain Adaptation by Backpropagation".
    """
    reversed_ = _Reverse.apply(x, strength)
    assert isinstance(reversed_, Tensor)
    return reversed_


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradients[0], None


class CTKD(ResponseLoss[config.CTKD]):
    """`ctkd` of the logits with a temperature parameter that is trained by reversed gradients."""

    def __init__(self, options: config.CTKD, *, student: Endpoint, teacher: Endpoint, data_spec: DataSpec) -> None:
        super().__init__(options, student=student, teacher=teacher, data_spec=data_spec)
        self.theta = nn.Parameter(torch.tensor(options.initial))
        self.strength = curriculum_strength(0.0, epochs=options.curriculum_epochs)

    def set_progress(self, progress: Progress) -> None:
        self.strength = curriculum_strength(progress.epoch, epochs=self.options.curriculum_epochs)

    @property
    def temperature(self) -> Float[Tensor, ""]:
        return learned_temperature(self.theta, start=self.options.start, span=self.options.span, strength=self.strength)

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        return ctkd(*self.logits(student, teacher), temperature=self.temperature)
