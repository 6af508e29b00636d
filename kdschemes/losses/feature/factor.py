"""Factors: what a translator makes of the student's map and a paraphraser of the teacher's."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from kdschemes.losses.feature.maps import attention_map, match_size
from kdschemes.losses.precision import full_precision
from kdschemes.losses.relation.rows import unit_rows


@full_precision
def ft(
    student: Float[Tensor, "n cs hs ws"],
    teacher: Float[Tensor, "n ct ht wt"],
    *,
    form: Literal["attention", "paper"] = "attention",
) -> Float[Tensor, ""]:
    r"""Return the mean of $|g(F_s) - g(F_t)|$ over samples and the entries of g.

    Kim, Park, Kwak 2018, "Paraphrasing Complex Network: Network Compression via Factor Transfer". In the paper (and
    torchdistill) g is the factor, flattened over channels and positions and scaled to unit length; in RepDistiller it
    is the factor's attention map of power 2, flattened over positions and scaled to unit length, another and a larger
    number. A factor of zeros gives g = 0 and a gradient of 0. Factors of different size are average-pooled to the
    smaller height and the smaller width first. Gradients flow to both.

    Args:
        student: factors.
        teacher: factors; with `form="paper"` of as many channels.
        form: "attention" (RepDistiller) or "paper".
    """
    student, teacher = match_size(student, teacher)
    if form == "attention":
        return (attention_map(student) - attention_map(teacher)).abs().mean()
    assert student.shape == teacher.shape, f"{tuple(student.shape)} against {tuple(teacher.shape)}"
    return (unit_rows(student.flatten(1)) - unit_rows(teacher.flatten(1))).abs().mean()
