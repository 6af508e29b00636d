"""The flow between two stages of a network."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from kdschemes.losses.feature.maps import hint, match_size
from kdschemes.losses.precision import full_precision


@full_precision
def fsp_matrix(a: Float[Tensor, "n ca ha wa"], b: Float[Tensor, "n cb hb wb"]) -> Float[Tensor, "n ca cb"]:
    r"""Return the flow between two stages: $G_{ij} = \frac1{HW} \sum_{hw} a_{ihw} b_{jhw}$.

    Yim et al. 2017, "A Gift from Knowledge Distillation". Where sizes differ, the larger map is average-pooled to
    the smaller height and width.
    """
    a, b = match_size(a, b)
    return a.flatten(2) @ b.flatten(2).mT / (a.shape[2] * a.shape[3])


def fsp(
    student: tuple[Float[Tensor, "n ca hs1 ws1"], Float[Tensor, "n cb hs2 ws2"]],
    teacher: tuple[Float[Tensor, "n ca ht1 wt1"], Float[Tensor, "n cb ht2 wt2"]],
) -> Float[Tensor, ""]:
    r"""Return the mean over samples and matrix entries of $(G^s - G^t)^2$, G as in `fsp_matrix`.

    Yim et al. 2017, "A Gift from Knowledge Distillation", with RepDistiller's mean over the entries. Gradients flow
    to both.

    Args:
        student: the maps of two stages.
        teacher: the maps of two stages with as many channels; sizes may differ from the student's.
    """
    return hint(fsp_matrix(*student), fsp_matrix(*teacher))
