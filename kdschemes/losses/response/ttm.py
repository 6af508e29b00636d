"""Transformed teacher matching: TTM (Zheng and Yang 2024)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kdschemes.core.precision import full_precision
from kdschemes.losses.response.divergence import divergence_by_gap
from kdschemes.losses.rows import without_offset


@full_precision
def ttm(student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], *, temperature: float) -> Float[Tensor, ""]:
    r"""Return $\frac1N \sum_n KL(softmax(v_n / T) \| softmax(z_n))$.

    Zheng, Yang 2024, "Knowledge Distillation Based on Transformed Teacher Matching". The teacher's probabilities are
    raised to the power $\gamma = 1/T$ and normalized; the student's have temperature 1, and there is no $T^2$. Mean
    over the batch; gradients flow to both; the student's is $(softmax(z) - softmax(v / T)) / N$.
    """
    return transformed_divergence(student, teacher, temperature).mean()


def transformed_divergence(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], temperature: float
) -> Float[Tensor, " n"]:
    r"""Return $KL(softmax(v_n / T) \| softmax(z_n))$ of every sample; inputs are at least float32."""
    assert temperature > 0, temperature
    student, softened = without_offset(student), without_offset(teacher) / temperature
    return divergence_by_gap(
        student - softened, functional.log_softmax(softened, dim=1), functional.log_softmax(student, dim=1)
    )
