"""Channel-wise distillation: CWD (Shu et al. 2021)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kdschemes.config.losses import feature as config
from kdschemes.core.loss import Gather, Loss, Side
from kdschemes.core.precision import full_precision
from kdschemes.core.types import Batch, Output, Task
from kdschemes.errors import UserError
from kdschemes.losses.response.kd import kd
from kdschemes.losses.stages import _projection, map_shape, match_size, match_stages, to_map


@full_precision
def cwd(
    student: Float[Tensor, "n c hs ws"], teacher: Float[Tensor, "n c ht wt"], *, temperature: float
) -> Float[Tensor, ""]:
    r"""Return $\frac{\tau^2}{NC} \sum_{n,c} KL(\phi(t_{nc}) \| \phi(s_{nc}))$, $\phi(x) = softmax_{hw}(x / \tau)$.

    Shu et al. 2021, "Channel-wise Knowledge Distillation for Dense Prediction": every channel of every sample is a
    distribution over positions. Sum over positions, mean over channels and the batch. Maps of different size are
    average-pooled to the smaller height and the smaller width first; equal channels are the caller's part. Gradients
    flow to both. It is `response.kd` of N C rows, and as precise.

    Args:
        student: feature maps.
        teacher: feature maps with as many channels; the size may differ.
        temperature: tau > 0.
    """
    student, teacher = match_size(student, teacher)
    return kd(student.flatten(2).flatten(0, 1), teacher.flatten(2).flatten(0, 1), temperature=temperature)


@full_precision
def unit(x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
    """Return the rows over their length, at any scale; a row of 0 stays 0 and has a gradient of 0."""
    largest = x.detach().abs().amax(dim=-1, keepdim=True)
    present = largest > torch.finfo(x.dtype).tiny
    scaled = torch.where(present, x, 1.0) / torch.where(present, largest, 1.0)
    return torch.where(present, scaled / scaled.norm(dim=-1, keepdim=True), 0.0)


class CWD(Loss[config.CWD]):
    """Sum over stage pairs of `cwd`. Square tokens count as a map.

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
            values.append(cwd(ours, theirs, temperature=self.options.temperature))
        return torch.stack(values).sum()


def _common_positions(ours: tuple[int, int, int], theirs: tuple[int, int, int]) -> int:
    return min(ours[1], theirs[1]) * min(ours[2], theirs[2])
