"""Weighted transformed teacher matching: WTTM (Zheng and Yang 2024)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kdschemes.core.precision import full_precision
from kdschemes.losses.response.ttm import transformed_divergence


@full_precision
def wttm(student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], *, temperature: float) -> Float[Tensor, ""]:
    r"""Return $\frac1N \sum_n U_n KL(softmax(v_n / T) \| softmax(z_n))$, $U_n = \sum_c p_{nc}^{1/T}$, $p = softmax(v)$.

    Zheng, Yang 2024: `ttm` with more weight on samples where the teacher is less confident. For T > 1, U ranges from 1
    (all mass on one class) to $C^{1 - 1/T}$ (uniform). Mean over the batch; gradients flow to both, but not through U.
    """
    log_p = functional.log_softmax(teacher.detach(), dim=1)
    power_sum = torch.logsumexp(log_p / temperature, dim=1).exp()
    return (power_sum * transformed_divergence(student, teacher, temperature)).mean()
