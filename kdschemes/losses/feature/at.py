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
    r"""Return $A = a / (\|a\|_2 + \epsilon)$, $a = \sum_c |f_c|^p$, flattened over positions; 0 where all f are 0.

    Zagoruyko & Komodakis 2017, "Paying More Attention to Attention". With $\epsilon = 0$ a mean over channels gives
    the same A, which does not depend on the scale of a sample's features. They are divided by their largest magnitude
    first (and $\epsilon$ with them), so that no scale overflows or underflows.

    Args:
        features: maps.
        power: p of at least 1.
        eps: not negative.
    """
    assert power >= 1, power
    assert eps >= 0, eps
    largest = features.detach().abs().amax(dim=(1, 2, 3), keepdim=True)
    scale = torch.where(largest > 0, largest, 1.0)
    energy = (features / scale).abs().pow(power).sum(dim=1).flatten(1)
    length = torch.linalg.vector_norm(energy, dim=1, keepdim=True)
    length = torch.where(length > 0, length, 1.0)
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
    r"""Compare attention maps A, as in `attention_map`: a mean over samples and positions of $(A(f_s) - A(f_t))^2$.

    Zagoruyko & Komodakis 2017. That is the form of the authors' code (and RepDistiller's); the form of the paper's
    text is the mean over samples of $\|A(f_s) - A(f_t)\|_2$, whose gradient jumps where the maps are equal: 0 there.
    Maps of different size are average-pooled to the smaller height and the smaller width first. Gradients flow to
    both.

    Args:
        student: feature maps.
        teacher: feature maps; channels and size may differ from the student's.
        variant: "code" or "paper".
        power: of the features' magnitudes in a map.
        eps: added to a map's length.
    """
    student, teacher = match_size(student, teacher)
    gap = attention_map(student, power=power, eps=eps) - attention_map(teacher, power=power, eps=eps)
    return torch.linalg.vector_norm(gap, dim=1).mean() if variant == "paper" else gap.square().mean()


class AT(StageLoss[config.AT]):
    """Sum over stage pairs of `attention_transfer`. Square tokens count as a map.

    Maps of one position have nothing to attend to (the term would always be 0): `stages=all` leaves such pairs out,
    other choices of them are refused.
    """

    def match(self, student: StageShapes, teacher: StageShapes) -> list[tuple[str, str]]:
        return pairs_of_positions("at", self.options.stages, student, teacher)

    def pair_loss(self, number: int, student: Tensor, teacher: Tensor, gather: Gather) -> Float[Tensor, ""]:
        return attention_transfer(to_map(student), to_map(teacher), **keywords(attention_transfer, self.options))
