"""Attention transfer: AT (Zagoruyko and Komodakis 2017)."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kdschemes.config.losses import feature as config
from kdschemes.core.loss import Gather, keywords
from kdschemes.core.precision import full_precision
from kdschemes.core.types import StageShapes
from kdschemes.losses.stages import StageLoss, match_size, pairs_of_positions, to_map


@full_precision
def attention_map(
    features: Float[Tensor, "n c h w"], *, power: float = 2.0, eps: float = 0.0
) -> Float[Tensor, "n h*w"]:
    r"""Return $A = a / (\|a\|_2 + \epsilon)$, $a = \sum_c |f_c|^p$, p = `power`, over positions; 0 if all f are 0.

    Zagoruyko & Komodakis 2017, "Paying More Attention to Attention". With $\epsilon = 0$, a mean over channels gives
    the same A, which is invariant to the scale of a sample's features. Features (and $\epsilon$) are first divided by
    their largest magnitude, so no scale overflows or underflows.
    """
    assert power >= 1, power
    assert eps >= 0, eps
    largest = features.detach().abs().amax(dim=(1, 2, 3), keepdim=True)
    scale = torch.where(largest != 0, largest, 1.0)
    energy = (features / scale).abs().pow(power).sum(dim=1).flatten(1)
    length = torch.linalg.vector_norm(energy, dim=1, keepdim=True)
    length = torch.where(length != 0, length, 1.0)
    return energy / (length + eps / scale.flatten(1).pow(power) if eps else length)


@full_precision
def attention_transfer(
    student: Float[Tensor, "n cs hs ws"],
    teacher: Float[Tensor, "n ct ht wt"],
    *,
    variant: Literal["code", "paper"] = "code",
    power: float = 2.0,
    eps: float = 0.0,
) -> Float[Tensor, ""]:
    r"""Return the mean over samples and positions of $(A(f_s) - A(f_t))^2$, with A from `attention_map`.

    Zagoruyko & Komodakis 2017. This is the authors' (and RepDistiller's) code; `variant='paper'` is the mean over
    samples of $\|A(f_s) - A(f_t)\|_2$, whose gradient is discontinuous for equal maps (0 here). Maps of different size
    are first average-pooled to the smaller height and width. Gradients flow to both.
    """
    student, teacher = match_size(student, teacher)
    gap = attention_map(student, power=power, eps=eps) - attention_map(teacher, power=power, eps=eps)
    return torch.linalg.vector_norm(gap, dim=1).mean() if variant == "paper" else gap.square().mean()


class AT(StageLoss[config.AT]):
    """Sum over stage pairs of `attention_transfer`. Square tokens count as a map.

    Maps with a single position have no attention (the term would always be 0): `stages=all` omits such pairs, other
    choices of them are rejected.
    """

    def match(self, student: StageShapes, teacher: StageShapes) -> list[tuple[str, str]]:
        return pairs_of_positions("at", self.options.stages, student, teacher)

    def pair_loss(self, number: int, student: Tensor, teacher: Tensor, gather: Gather) -> Float[Tensor, ""]:
        return attention_transfer(to_map(student), to_map(teacher), **keywords(attention_transfer, self.options))
