"""Knowledge review: maps compared at several sizes."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kdschemes.losses.feature.maps import hint
from kdschemes.losses.precision import full_precision

_LEVELS = (4, 2, 1)


@full_precision
def hcl(student: Float[Tensor, "n c h w"], teacher: Float[Tensor, "n c h w"]) -> Float[Tensor, ""]:
    r"""Return the hierarchical context loss, $\sum_l w_l \, \mathrm{MSE}(P_l f_s, P_l f_t) / \sum_l w_l$.

    Chen et al. 2021, "Distilling Knowledge via Knowledge Review". The first level is the map itself with weight 1; the
    next ones are average-pooled to 4x4, 2x2 and 1x1, each with half the weight of the one before. A level that is not
    smaller than the map in both its sides is left out, and takes no weight (the references look at the height only:
    the same for square maps). MSE is a mean over all elements. Gradients flow to both.

    Args:
        student: feature maps.
        teacher: feature maps of the same shape.
    """
    value = hint(student, teacher)
    weight, total = 1.0, 1.0
    for level in _LEVELS:
        if level < min(student.shape[2:]):
            weight /= 2.0
            total += weight
            pooled = (functional.adaptive_avg_pool2d(f, level) for f in (student, teacher))
            value = value + weight * hint(*pooled)
    return value / total
