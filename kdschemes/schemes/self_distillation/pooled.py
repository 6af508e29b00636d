"""The feature terms of two public codes of self-distillation between exits: vectors pooled over positions."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kdschemes.config.losses import Ramp
from kdschemes.core.loss import Gather, Loss, Side, embedding
from kdschemes.core.precision import full_precision
from kdschemes.core.types import Batch, Output, Task


@full_precision
def batch_norm_of_gap(student: Float[Tensor, "n d"], teacher: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    r"""Return $\sqrt{\sum_n \|f_n - g_n\|^2}$, the norm of the whole batch's difference, not squared.

    The authors' code of Zhang et al. 2019 (ArchipLab-LinfengZhang/pytorch-self-distillation-final). It grows with the
    square root of the batch. Gradients flow to both; 0 where they are equal.

    Args:
        student: f.
        teacher: g.
    """
    norm: Tensor = torch.linalg.vector_norm(student - teacher)
    return norm


@full_precision
def active_gap(student: Float[Tensor, "n d"], teacher: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    r"""Return the mean over the batch of $\sum_d (f_d - g_d)^2 [f_d > 0 \vee g_d > 0]$.

    luanyunteng/pytorch-be-your-own-teacher, which sums over the batch. Gradients flow to both.

    Args:
        student: f.
        teacher: g.
    """
    active = (student > 0) | (teacher > 0)
    return ((student - teacher).square() * active).sum(dim=1).mean()


class PooledNorm(Loss[Ramp]):
    """`batch_norm_of_gap` of the pooled features, the student's after a learned linear layer."""

    spans_batch = True

    def __init__(self, options: Ramp, *, student: Side, teacher: Side, task: Task) -> None:
        super().__init__(options, student=student, teacher=teacher, task=task)
        self.adapter = nn.Linear(_width(student), _width(teacher))

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        return batch_norm_of_gap(gather(self.adapter(_pooled(student))), gather(_pooled(teacher)))


class PooledSum(Loss[Ramp]):
    """`active_gap` of the pooled features, summed over the optimizer step's samples.

    A student of another width passes a learned linear layer first.
    """

    def __init__(self, options: Ramp, *, student: Side, teacher: Side, task: Task) -> None:
        super().__init__(options, student=student, teacher=teacher, task=task)
        same = _width(student) == _width(teacher)
        self.adapter = nn.Identity() if same else nn.Linear(_width(student), _width(teacher))

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        samples = len(batch) if batch.step_size is None else batch.step_size
        return samples * active_gap(self.adapter(_pooled(student)), _pooled(teacher))


def _pooled(output: Output) -> Float[Tensor, "n d"]:
    return embedding(list(output.features.values())[-1])


def _width(side: Side) -> int:
    shape = list(side.features.values())[-1]
    return shape[0] if len(shape) == 3 else shape[-1]
