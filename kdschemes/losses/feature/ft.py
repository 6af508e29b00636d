"""Factor transfer: FT (Kim et al. 2018)."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kdschemes.config.losses import feature as config
from kdschemes.core.loss import Endpoint, Gather
from kdschemes.core.precision import full_precision
from kdschemes.core.types import Batch, DataSpec, Output, StageShapes
from kdschemes.losses.feature.at import attention_map
from kdschemes.losses.feature.hint import hint
from kdschemes.losses.rows import unit_rows
from kdschemes.losses.stages import StageLoss, map_shapes, match_size, pairs_of_positions
from kdschemes.models.recombined import as_map

_LEAK = 0.1


@full_precision
def ft(
    student: Float[Tensor, "n cs hs ws"],
    teacher: Float[Tensor, "n ct ht wt"],
    *,
    variant: Literal["attention", "paper"] = "attention",
) -> Float[Tensor, ""]:
    r"""Return the mean of $|g(F_s) - g(F_t)|$ over samples and the entries of g.

    Kim, Park, Kwak 2018, "Paraphrasing Complex Network: Network Compression via Factor Transfer". In the paper (and
    torchdistill) g is the factor, flattened over channels and positions and L2-normalized; for `attention` (as in
    RepDistiller), its L2-normalized attention map with power 2: a larger value. A zero factor gives g = 0 with zero
    gradient. Factors of different size are first average-pooled to the smaller height and width. Gradients flow to
    both.
    """
    student, teacher = match_size(student, teacher)
    if variant == "attention":
        return (attention_map(student) - attention_map(teacher)).abs().mean()
    assert student.shape == teacher.shape, f"{tuple(student.shape)} against {tuple(teacher.shape)}"
    return (unit_rows(student.flatten(1)) - unit_rows(teacher.flatten(1))).abs().mean()


class FT(StageLoss[config.FT]):
    """Sum over stage pairs of `ft` between factors, plus the weighted reconstruction error of each paraphraser.

    A paraphraser (encoder and decoder) learns to reconstruct the teacher's map; its code is the teacher's factor,
    detached in the comparison, so only the reconstruction (`hint`) trains it. A translator (encoder) computes the
    student's factor. Both are trained from the first step on; the paper pretrains the paraphraser. Square tokens count
    as a map, a vector as a 1x1 map. A single position has no attention: unless `variant` is "paper", `stages=last` is
    the deepest pair with more than one position, and other choices are treated as in `AT`.
    """

    def __init__(self, options: config.FT, *, student: Endpoint, teacher: Endpoint, data_spec: DataSpec) -> None:
        super().__init__(options, student=student, teacher=teacher, data_spec=data_spec)
        self.translators, self.encoders, self.decoders = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for pair in self.pairs:
            (before, *_), (channels, *_) = map_shapes("ft", pair, student, teacher)
            code = max(1, int(options.rate * channels))
            self.translators.append(_layers(nn.Conv2d, before, before, code, code))
            self.encoders.append(_layers(nn.Conv2d, channels, channels, code, code))
            self.decoders.append(_layers(nn.ConvTranspose2d, code, code, channels, channels))

    def match(self, student: StageShapes, teacher: StageShapes) -> list[tuple[str, str]]:
        if self.options.variant == "paper":
            return super().match(student, teacher)
        if self.options.stages == "last":
            return pairs_of_positions("ft", "all", student, teacher)[-1:]
        return pairs_of_positions("ft", self.options.stages, student, teacher)

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        values = []
        for (a, b), translate, encode, decode in zip(
            self.pairs, self.translators, self.encoders, self.decoders, strict=True
        ):
            theirs = as_map(teacher.features[b])
            factor = encode(theirs)
            values.append(ft(translate(as_map(student.features[a])), factor.detach(), variant=self.options.variant))
            values.append(self.options.reconstruction * hint(decode(factor), theirs))
        return torch.stack(values).sum()


def _layers(convolution: type[nn.Conv2d] | type[nn.ConvTranspose2d], *channels: int) -> nn.Sequential:
    """Return 3x3 convolutions from each number of channels to the next, with batch norm and leaky ReLU."""
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        layers += [
            convolution(before, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.LeakyReLU(_LEAK),
        ]
    return nn.Sequential(*layers)
