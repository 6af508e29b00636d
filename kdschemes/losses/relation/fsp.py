"""Flow of solution procedure: FSP (Yim et al. 2017)."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from kdschemes.config.losses import relation as config
from kdschemes.core.loss import Endpoint, Gather, keywords
from kdschemes.core.precision import full_precision
from kdschemes.core.types import Batch, DataSpec, Output
from kdschemes.losses.feature.hint import hint
from kdschemes.losses.stages import StageLoss, check_two_pairs, map_shape, match_size, projection, to_map

Pooling = Literal["average", "max"]

Distance = Literal["squared", "column_norms"]


@full_precision
def fsp_matrix(
    a: Float[Tensor, "n ca ha wa"], b: Float[Tensor, "n cb hb wb"], *, pooling: Pooling = "average"
) -> Float[Tensor, "n ca cb"]:
    r"""Return the FSP matrix of two stages: $G_{ij} = \frac1{HW} \sum_{hw} a_{ihw} b_{jhw}$.

    Yim et al. 2017, "A Gift from Knowledge Distillation". If sizes differ, the larger map is pooled to the smaller
    height and width, by `average` (RepDistiller) or `max` (torchdistill).
    """
    a, b = match_size(a, b) if pooling == "average" else _match_size_by_max(a, b)
    return a.flatten(2) @ b.flatten(2).mT / (a.shape[2] * a.shape[3])


def fsp(
    student: tuple[Float[Tensor, "n ca hs1 ws1"], Float[Tensor, "n cb hs2 ws2"]],
    teacher: tuple[Float[Tensor, "n ca ht1 wt1"], Float[Tensor, "n cb ht2 wt2"]],
    *,
    pooling: Pooling = "average",
    distance: Distance = "squared",
) -> Float[Tensor, ""]:
    r"""Return the distance between the student's and the teacher's FSP matrices, G as in `fsp_matrix`.

    Yim et al. 2017, "A Gift from Knowledge Distillation". `squared` is the mean over samples and matrix entries of
    $(G^s - G^t)^2$ (RepDistiller; the paper sums over the entries), `column_norms` the mean over samples of
    $\sum_j \|G^s_{\cdot j} - G^t_{\cdot j}\|$ (torchdistill); equal columns have zero gradient. Gradients flow to both.
    `student` and `teacher` are the maps of two stages each, with the same channels; sizes may differ.
    """
    ours, theirs = fsp_matrix(*student, pooling=pooling), fsp_matrix(*teacher, pooling=pooling)
    return hint(ours, theirs) if distance == "squared" else _column_norms(ours, theirs)


@full_precision
def _column_norms(ours: Float[Tensor, "n ca cb"], theirs: Float[Tensor, "n ca cb"]) -> Float[Tensor, ""]:
    assert ours.shape == theirs.shape, f"{tuple(ours.shape)} vs. {tuple(theirs.shape)}"
    norms: Tensor = torch.linalg.vector_norm(ours - theirs, dim=1)
    return norms.sum(dim=1).mean()


def _match_size_by_max(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    size = (min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3]))
    ours, theirs = (x if x.shape[2:] == size else functional.adaptive_max_pool2d(x, size) for x in (a, b))
    return ours, theirs


class FSP(StageLoss[config.FSP]):
    """Sum over consecutive stage pairs of `fsp`. Square tokens count as a map.

    If channels differ from the teacher's, the student's stages first go through a learned 1x1 convolution.
    """

    def __init__(self, options: config.FSP, *, student: Endpoint, teacher: Endpoint, data_spec: DataSpec) -> None:
        super().__init__(options, student=student, teacher=teacher, data_spec=data_spec)
        check_two_pairs("fsp", self.pairs, "set losses.relation.stages=all or list two pairs")
        shapes = [
            (map_shape("fsp", a, student.features[a]), map_shape("fsp", b, teacher.features[b])) for a, b in self.pairs
        ]
        self.adapters = nn.ModuleList(projection(ours[0], theirs[0]) for ours, theirs in shapes)

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        ours = [adapt(to_map(student.features[a])) for (a, _), adapt in zip(self.pairs, self.adapters, strict=True)]
        theirs = [to_map(teacher.features[b]) for _, b in self.pairs]
        flows = zip(pairwise(ours), pairwise(theirs), strict=True)
        return torch.stack([fsp(s, t, **keywords(fsp, self.options)) for s, t in flows]).sum()
