"""Hints and attention: the features themselves, and where in a map they are."""

from __future__ import annotations

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
def attention_map(features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n h*w"]:
    r"""Return $A = a / \|a\|_2$ with $a = \frac1C \sum_c f_c^2$, flattened over positions; 0 where all features are 0.

    Zagoruyko & Komodakis 2017, "Paying More Attention to Attention". A does not depend on the scale of a sample's
    features, so they are divided by their largest magnitude first and no scale overflows or underflows.
    """
    largest = features.detach().abs().amax(dim=(1, 2, 3), keepdim=True)
    scaled = features / torch.where(largest > 0, largest, 1.0)
    return functional.normalize(scaled.square().mean(dim=1).flatten(1), dim=1)


@full_precision
def attention_transfer(student: Float[Tensor, "n cs hs ws"], teacher: Float[Tensor, "n ct ht wt"]) -> Float[Tensor, ""]:
    r"""Return the mean over samples and positions of $(A(f_s) - A(f_t))^2$, A as in `attention_map`.

    Zagoruyko & Komodakis 2017, as in the authors' code (and RepDistiller): squared differences and a mean, where
    the paper's text has an un-squared norm. Maps of different size are average-pooled to the smaller height and
    the smaller width first. Gradients flow to both.

    Args:
        student: feature maps.
        teacher: feature maps; channels and size may differ from the student's.
    """
    student, teacher = match_size(student, teacher)
    return (attention_map(student) - attention_map(teacher)).square().mean()


def match_size(
    a: Float[Tensor, "n ca ha wa"], b: Float[Tensor, "n cb hb wb"]
) -> tuple[Float[Tensor, "n ca h w"], Float[Tensor, "n cb h w"]]:
    """Return both maps, average-pooled where needed to the smaller height and the smaller width of the two."""
    size = (min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3]))
    return _pool(a, size), _pool(b, size)


def _pool(features: Tensor, size: tuple[int, int]) -> Tensor:
    return features if features.shape[2:] == size else functional.adaptive_avg_pool2d(features, size)
