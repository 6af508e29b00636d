"""BYOT: a network's deepest exit teaches the shallow ones."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kdschemes.config import Config
from kdschemes.config.losses import Ramp
from kdschemes.config.schemes.self_distillation import SelfBYOT
from kdschemes.core.distillation import Distillation
from kdschemes.core.loss import Endpoint, Gather, Loss, embedding, embedding_width
from kdschemes.core.nodes import Ensemble, NetworkWithExits, Node
from kdschemes.core.precision import full_precision
from kdschemes.core.schedules import constant
from kdschemes.core.terms import Transfer
from kdschemes.core.types import Batch, DataSpec, Output
from kdschemes.errors import UserError
from kdschemes.schemes.distill import Edge, distill, probe, soft_weight
from kdschemes.schemes.networks import network_with_exits


def byot(config: Config, data_spec: DataSpec) -> Distillation:
    """Return the scheme of `taught_by_the_deepest` on a new network with exits."""
    return taught_by_the_deepest(
        NetworkWithExits("student", network_with_exits(config, data_spec, "student")), config, data_spec
    )


def taught_by_the_deepest(student: Node, config: Config, data_spec: DataSpec) -> Distillation:
    """Return CE of the deepest exit and, for each exit i, (1 - alpha) CE_i + alpha response(deepest -> i).

    `student` provides the deepest exit, then the others, shallow to deep. Feature losses match each exit's map to the
    deepest stage's; the public variants have their own term between spatially pooled vectors instead. Without a
    response loss, each exit's CE has weight 1. luanyunteng also weights the deepest exit's CE by 1 - alpha.

    Raises:
        UserError: `scheme.beta` is set for the variant without a feature term.
    """
    options = config.scheme
    assert isinstance(options, SelfBYOT)
    if options.variant == "ours" and options.beta:
        raise UserError(
            f"scheme.beta={options.beta} has no effect with scheme.variant=ours: its feature term is losses.feature"
        )
    deepest, *exits = student.provides
    alpha = soft_weight(config)
    return distill(
        {"student": student, "ensemble": Ensemble("ensemble", student.provides)},
        supervised={deepest: 1.0 - alpha if options.variant == "luanyunteng" else 1.0}
        | dict.fromkeys(exits, 1.0 - alpha),
        edges=[Edge(deepest, name, response=alpha) for name in exits],
        losses=config.losses,
        heads=[*student.provides, "ensemble"],
        data_spec=data_spec,
        terms=_own_features(student, options, data_spec),
    )


def _own_features(student: Node, options: SelfBYOT, data_spec: DataSpec) -> list[Transfer]:
    """Return a public variant's feature terms; the authors' code omits the last of the other exits."""
    if options.variant == "ours":
        return []
    deepest, *exits = student.provides
    endpoints = {name: Endpoint(shapes) for name, shapes in probe([student], data_spec).items()}
    authors = options.variant == "authors"
    kind: type[Loss[Ramp]] = PooledNorm if authors else PooledSum
    terms = []
    for name in exits[:-1] if authors else exits:
        loss = kind(Ramp(), student=endpoints[name], teacher=endpoints[deepest], data_spec=data_spec)
        terms.append(Transfer("pooled", deepest, name, loss, constant(options.beta)))
    return terms


@full_precision
def batch_norm_of_gap(student: Float[Tensor, "n d"], teacher: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    r"""Return $\sqrt{\sum_n \|f_n - g_n\|^2}$, the norm of the whole batch's difference, not squared.

    The authors' code of Zhang et al. 2019 (ArchipLab-LinfengZhang/pytorch-self-distillation-final). It grows with the
    square root of the batch size. Gradients flow to both; they are 0 where the features are equal.

    Args:
        student: f.
        teacher: g.
    """
    norm: Tensor = torch.linalg.vector_norm(student - teacher)
    return norm


@full_precision
def active_gap(student: Float[Tensor, "n d"], teacher: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    r"""Return the mean over the batch of $\sum_d (f_d - g_d)^2 [f_d > 0 \vee g_d > 0]$.

    As in luanyunteng/pytorch-be-your-own-teacher, which sums over the batch. Gradients flow to both.

    Args:
        student: f.
        teacher: g.
    """
    active = (student > 0) | (teacher > 0)
    return ((student - teacher).square() * active).sum(dim=1).mean()


class PooledNorm(Loss[Ramp]):
    """`batch_norm_of_gap` of the pooled features, the student's after a learned linear layer."""

    needs_global_batch = True

    def __init__(self, options: Ramp, *, student: Endpoint, teacher: Endpoint, data_spec: DataSpec) -> None:
        super().__init__(options, student=student, teacher=teacher, data_spec=data_spec)
        self.adapter = nn.Linear(_width(student), _width(teacher))

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        return batch_norm_of_gap(gather(self.adapter(_pooled(student))), gather(_pooled(teacher)))


class PooledSum(Loss[Ramp]):
    """`active_gap` of the pooled features, summed over the optimizer step's samples.

    A student of another width is projected by a learned linear layer first.
    """

    def __init__(self, options: Ramp, *, student: Endpoint, teacher: Endpoint, data_spec: DataSpec) -> None:
        super().__init__(options, student=student, teacher=teacher, data_spec=data_spec)
        same = _width(student) == _width(teacher)
        self.adapter = nn.Identity() if same else nn.Linear(_width(student), _width(teacher))

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        samples = len(batch) if batch.step_size is None else batch.step_size
        return samples * active_gap(self.adapter(_pooled(student)), _pooled(teacher))


def _pooled(output: Output) -> Float[Tensor, "n d"]:
    return embedding(list(output.features.values())[-1])


def _width(side: Endpoint) -> int:
    return embedding_width(list(side.features.values())[-1])
