"""Transformed teacher matching: a softened teacher against a student that is not softened."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kdschemes.losses.precision import full_precision
from kdschemes.losses.response.divergence import divergence_by_gap


@full_precision
def ttm(student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], *, temperature: float) -> Float[Tensor, ""]:
    r"""Return $\frac1N \sum_n KL(softmax(v_n / T) \| softmax(z_n))$.

    Zheng, Yang 2024, "Knowledge Distillation Based on Transformed Teacher Matching". The teacher's probabilities
    are raised to the power $\gamma = 1/T$ and normalised, the student's stay at temperature 1, and there is no
    $T^2$. Mean over the batch; gradients flow to both, the student's is $(softmax(z) - softmax(v / T)) / N$.

    Args:
        student: logits z.
        teacher: logits v.
        temperature: T > 0 of the teacher.
    """
    return _divergence(student, teacher, temperature).mean()


@full_precision
def wttm(student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], *, temperature: float) -> Float[Tensor, ""]:
    r"""Return $\frac1N \sum_n U_n KL(softmax(v_n / T) \| softmax(z_n))$, $U_n = \sum_c p_{nc}^{1/T}$, $p = softmax(v)$.

    Zheng, Yang 2024, as `ttm` with more weight on samples of which the teacher is less sure: for T > 1, U runs from
    1 (one class has all the mass) to $C^{1 - 1/T}$ (all classes the same). Mean over the batch; gradients flow to
    both, but not through U.

    Args:
        student: logits z.
        teacher: logits v.
        temperature: T > 0 of the teacher.
    """
    log_p = functional.log_softmax(teacher.detach(), dim=1)
    power_sum = torch.logsumexp(log_p / temperature, dim=1).exp()
    return (power_sum * _divergence(student, teacher, temperature)).mean()


def _divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    assert temperature > 0, temperature
    softened = teacher / temperature
    return divergence_by_gap(
        student - softened, functional.log_softmax(softened, dim=1), functional.log_softmax(student, dim=1)
    )
