"""Hints and attention: the features themselves, and where in a map they are."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kdschemes.losses.precision import full_precision


@full_precision
def hint(student: Float[Tensor, "*shape"], teacher: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    r"""Return the mean over all elements of $(f_s - f_t)^2$.

    Romero et al. 2015, "FitNets", without the paper's factor 1/2 (RepDistiller's convention). A regressor that
    brings the student's features to the teacher's shape belongs to the caller. Gradients flow to both.

    Args:
        student: features, batch first.
        teacher: features of the same shape.
    """
    assert student.shape == teacher.shape, f"{tuple(student.shape)} against {tuple(teacher.shape)}"
    return (student - teacher).square().mean()


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
    form: Literal["code", "paper"] = "code",
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
        form: "code" or "paper".
        power: of the features' magnitudes in a map.
        eps: added to a map's length.
    """
    student, teacher = match_size(student, teacher)
    gap = attention_map(student, power=power, eps=eps) - attention_map(teacher, power=power, eps=eps)
    return torch.linalg.vector_norm(gap, dim=1).mean() if form == "paper" else gap.square().mean()


def match_size(
    a: Float[Tensor, "n ca ha wa"], b: Float[Tensor, "n cb hb wb"]
) -> tuple[Float[Tensor, "n ca h w"], Float[Tensor, "n cb h w"]]:
    """Return both maps, average-pooled where needed to the smaller height and the smaller width of the two."""
    size = (min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3]))
    return _pool(a, size), _pool(b, size)


def _pool(features: Tensor, size: tuple[int, int]) -> Tensor:
    return features if features.shape[2:] == size else functional.adaptive_avg_pool2d(features, size)
