"""Instance relationship graphs: IRG (Liu et al. 2019)."""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kdschemes.config.losses import relation as config
from kdschemes.core.loss import Endpoint, Gather, embedding
from kdschemes.core.precision import full_precision
from kdschemes.core.types import Batch, DataSpec, Output
from kdschemes.errors import UserError
from kdschemes.losses.feature.hint import hint
from kdschemes.losses.stages import StageLoss, check_two_pairs, map_shape, match_size, to_map


@full_precision
def irg_edges(features: Float[Tensor, " n *shape"]) -> Float[Tensor, "n n"]:
    r"""Return $E_{ij} = \|f_i - f_j\|^2 / \max_{kl} \|f_k - f_l\|^2$ of flattened features; 0 if all are equal.

    Liu et al. 2019, "Knowledge Distillation via Instance Relationship Graph", divided by the largest distance as in
    Knowledge-Distillation-Zoo. Gradients also flow through the largest. E is invariant to offset and scale: the batch
    mean is subtracted and the largest magnitude divided out first, so the products are accurate relative to the largest
    distance. Pass the whole batch.
    """
    x = features.flatten(1)
    x = x - x.detach().mean(dim=0)
    x = _without_scale(x)
    squares = x.square().sum(dim=1)
    distances = squares[:, None] + squares - 2.0 * x @ x.mT
    return _relative_to_largest(distances.masked_fill(torch.eye(len(x), dtype=torch.bool, device=x.device), 0.0))


@full_precision
def irg_transformation(a: Float[Tensor, "n ca ha wa"], b: Float[Tensor, "n cb hb wb"]) -> Float[Tensor, " n"]:
    r"""Return $t_n = \|a_n - b_n\|^2 / \max_m \|a_m - b_m\|^2$ between two stages of a network; 0 if all are 0.

    Liu et al. 2019, "Knowledge Distillation via Instance Relationship Graph". The larger map is average-pooled to the
    smaller height and width; groups of neighboring channels are averaged in the map with more channels. Gradients also
    flow through the largest. Pass the whole batch.
    """
    a, b = match_size(a, b)
    channels = min(a.shape[1], b.shape[1])
    gap = _without_scale(_average_channels(a, channels) - _average_channels(b, channels))
    return _relative_to_largest(gap.square().sum(dim=(1, 2)))


def _average_channels(features: Tensor, channels: int) -> Tensor:
    x = features.flatten(2)
    return x if x.shape[1] == channels else functional.adaptive_avg_pool1d(x.mT, channels).mT


def _without_scale(x: Tensor) -> Tensor:
    largest = x.detach().abs().amax()
    return x / torch.where(largest != 0, largest, 1.0)


def _relative_to_largest(distances: Tensor) -> Tensor:
    largest = distances.amax()
    return distances / torch.where(largest != 0, largest, 1.0)


class IRG(StageLoss[config.IRG]):
    """The weighted sum of three mean squared differences, on tensors gathered from all processes.

    `vertices` compares the logits; `edges` compares `irg_edges`, averaged over the stage pairs' features and the last
    pair's features averaged over positions; `transformations` compares `irg_transformation`, averaged over consecutive
    stage pairs. Square tokens count as a map.
    """

    needs_global_batch = True

    def __init__(self, options: config.IRG, *, student: Endpoint, teacher: Endpoint, data_spec: DataSpec) -> None:
        if options.vertices == options.edges == options.transformations == 0:
            raise UserError("irg with vertices=0, edges=0 and transformations=0 compares nothing: set one of them > 0")
        super().__init__(options, student=student, teacher=teacher, data_spec=data_spec)
        if options.transformations:
            advice = "list two pairs in losses.relation.stages or set losses.relation.transformations=0"
            check_two_pairs("irg", self.pairs, advice)
            for a, b in self.pairs:
                map_shape("irg", a, student.features[a]), map_shape("irg", b, teacher.features[b])

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        ours = [gather(student.features[a]) for a, _ in self.pairs]
        theirs = [gather(teacher.features[b]) for _, b in self.pairs]
        parts = []
        if self.options.vertices:
            parts.append(self.options.vertices * hint(gather(student.logits), gather(teacher.logits)))
        if self.options.edges:
            graphs = zip([*ours, embedding(ours[-1])], [*theirs, embedding(theirs[-1])], strict=True)
            gaps = [hint(irg_edges(s), irg_edges(t)) for s, t in graphs]
            parts.append(self.options.edges * torch.stack(gaps).mean())
        if self.options.transformations:
            steps = zip(pairwise(map(to_map, ours)), pairwise(map(to_map, theirs)), strict=True)
            gaps = [hint(irg_transformation(*s), irg_transformation(*t)) for s, t in steps]
            parts.append(self.options.transformations * torch.stack(gaps).mean())
        return torch.stack(parts).sum()
