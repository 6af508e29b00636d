"""Kullback-Leibler divergence of softened outputs: KD (Hinton et al. 2015)."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from kdschemes.core.precision import full_precision
from kdschemes.losses.response.divergence import divergence


@full_precision
def kd(
    student: Float[Tensor, "n c"],
    teacher: Float[Tensor, "n c"],
    *,
    temperature: float,
    scale: bool = True,
    reduction: Literal["batchmean", "mean"] = "batchmean",
) -> Float[Tensor, ""]:
    r"""Return Hinton's distillation loss: $T^2 \frac1N \sum_n KL(p_T(v_n) \| p_T(z_n))$, $p_T(x) = softmax(x / T)$.

    Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network". Natural logarithm, sum over classes,
    mean over the batch. Gradients flow to both; the student's is $T (p_T(z) - p_T(v)) / N$. Accurate for close outputs
    (high temperature, small logits). `scale=False` omits $T^2$; `reduction='mean'` also divides by C, like the default
    of torch's KLDivLoss and several public implementations.
    """
    by_sample = divergence(student, teacher, temperature=temperature)
    value = by_sample.mean() if reduction == "batchmean" else by_sample.mean() / student.shape[1]
    return temperature**2 * value if scale else value
