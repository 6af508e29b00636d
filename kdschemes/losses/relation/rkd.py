"""Relational knowledge distillation: RKD (Park et al. 2019)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from kdschemes.config.losses import relation as config
from kdschemes.core.loss import Endpoint, Gather, embedding
from kdschemes.core.precision import full_precision
from kdschemes.core.types import Batch, DataSpec, Output
from kdschemes.errors import UserError
from kdschemes.losses.rows import unit_rows
from kdschemes.losses.stages import StageLoss

_CHUNK_ELEMENTS = 2**20


@full_precision
def rkd_distance(student: Float[Tensor, "n ds"], teacher: Float[Tensor, "n dt"]) -> Float[Tensor, ""]:
    r"""Return the mean over all N^2 ordered pairs of $\ell(D^s_{ij}, D^t_{ij})$, $D_{ij} = \|x_i - x_j\| / \mu$.

    Park et al. 2019, "Relational Knowledge Distillation". As in the authors' code, $\mu$ is the mean distance over
    pairs $i \ne j$, the diagonal is 0, distances are clamped to at least 1e-6 (without gradient), and $\ell$ is the
    smooth L1 loss with beta 1. Distances are computed from differences, so a common offset does not cost precision. A
    batch of 1 gives 0 with zero gradient. Gradients flow to both. Depends on pairs of samples: pass the whole batch.
    """
    if len(student) == 1:
        return 0.0 * (student.sum() + teacher.sum())
    return functional.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher))


def _relative_distances(x: Tensor) -> Tensor:
    n = len(x)
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").clamp(min=1e-6)
    distances = distances * (1.0 - torch.eye(n, dtype=x.dtype, device=x.device))
    return distances / (distances.sum() / (n * (n - 1)))


@full_precision
def rkd_angle(student: Float[Tensor, "n ds"], teacher: Float[Tensor, "n dt"]) -> Float[Tensor, ""]:
    r"""Return the mean over all N^3 triplets of $\ell(\cos^s_{ijk}, \cos^t_{ijk})$, the cosines of the angles at j.

    Park et al. 2019, "Relational Knowledge Distillation". $\cos_{ijk} = e_{ij} \cdot e_{kj}$ with
    $e_{ij} = (x_i - x_j) / \|x_i - x_j\|$, 0 (without gradient) where $x_i = x_j$. As in the authors' code, $\ell$ is
    the smooth L1 loss with beta 1, and triplets with repeated samples are included. Gradients flow to both; there are
    no second derivatives. The gradient is computed along with the value, for a few anchors j at a time, so memory use
    stays close to that of the embeddings. Depends on triplets of samples: pass the whole batch.
    """
    value = _Angle.apply(student, teacher)
    assert isinstance(value, Tensor)
    return value


class _Angle(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        n = len(student)
        chunk = max(1, _CHUNK_ELEMENTS // (n * max(n, student.shape[1], teacher.shape[1])))
        total = student.new_zeros(())
        gradients = [torch.zeros_like(x) if needed else None for x, needed in _inputs(ctx, student, teacher)]
        for anchors in torch.split(torch.arange(n, device=student.device), chunk):
            units, lengths = zip(*(_unit_differences(x, anchors) for x in (student, teacher)), strict=True)
            gap = units[0] @ units[0].mT - units[1] @ units[1].mT
            total += functional.smooth_l1_loss(gap, torch.zeros_like(gap), reduction="sum")
            slope = gap.clamp(-1.0, 1.0)
            for gradient, unit, length, sign in zip(gradients, units, lengths, (1.0, -1.0), strict=True):
                if gradient is not None:
                    _add_gradient(gradient, anchors, sign * slope, unit, length)
        ctx.save_for_backward(*(None if g is None else g / n**3 for g in gradients))
        return total / n**3

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return tuple(None if g is None else upstream * g for g in ctx.saved_tensors)


def _inputs(ctx: Any, *tensors: Tensor) -> list[tuple[Tensor, bool]]:
    return list(zip(tensors, ctx.needs_input_grad, strict=True))


def _unit_differences(x: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Return normalized `x_i - x_j`, `[anchors j, i, d]`, and its norm (1 where it is 0), `[j, i, 1]`."""
    differences = x[None] - x[anchors, None]
    lengths = differences.norm(dim=2, keepdim=True)
    lengths = torch.where(lengths != 0, lengths, 1.0)
    return differences / lengths, lengths


def _add_gradient(gradient: Tensor, anchors: Tensor, slope: Tensor, unit: Tensor, length: Tensor) -> None:
    """Add the gradient of a function of the cosines `unit unit^T` whose derivative is `slope` (symmetric)."""
    by_unit = 2.0 * slope @ unit
    by_difference = (by_unit - (by_unit * unit).sum(dim=2, keepdim=True) * unit) / length
    by_difference = torch.where(unit.any(dim=2, keepdim=True), by_difference, 0.0)
    gradient += by_difference.sum(dim=0)
    gradient[anchors] -= by_difference.sum(dim=1)


class RKD(StageLoss[config.RKD]):
    """Sum over stage pairs of the weighted `rkd_distance` and `rkd_angle`.

    Embeddings are the stages' features averaged over positions (L2-normalized if `options.normalize`), gathered from
    all processes.
    """

    needs_global_batch = True

    def __init__(self, options: config.RKD, *, student: Endpoint, teacher: Endpoint, data_spec: DataSpec) -> None:
        if options.distance == options.angle == 0:
            raise UserError("rkd with distance=0 and angle=0 compares nothing: give one of them a positive weight")
        super().__init__(options, student=student, teacher=teacher, data_spec=data_spec)

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        values = []
        for a, b in self.pairs:
            ours, theirs = gather(embedding(student.features[a])), gather(embedding(teacher.features[b]))
            if self.options.normalize:
                ours, theirs = unit_rows(ours), unit_rows(theirs)
            if self.options.distance:
                values.append(self.options.distance * rkd_distance(ours, theirs))
            if self.options.angle:
                values.append(self.options.angle * rkd_angle(ours, theirs))
        return torch.stack(values).sum()
