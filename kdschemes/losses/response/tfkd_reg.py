"""A manually designed teacher, built from the label: Tf-KD reg (Yuan et al. 2020)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kdschemes.config.losses import response as config
from kdschemes.core.loss import Gather, keywords
from kdschemes.core.precision import full_precision
from kdschemes.core.types import Batch, Output
from kdschemes.losses.response.base import ResponseLoss
from kdschemes.losses.response.divergence import divergence


@full_precision
def tfkd_reg(
    student: Float[Tensor, "n c"],
    labels: Int[Tensor, " n"],
    *,
    temperature: float = 20.0,
    label_prob: float = 0.99,
    multiplier: float = 100.0,
) -> Float[Tensor, ""]:
    r"""Return $m \frac1{NC} \sum_n KL(softmax(u_n / T) \| softmax(z_n))$, with u built from the label.

    Yuan et al. 2020, "Revisiting Knowledge Distillation via Label Smoothing Regularization", as in the authors' code.
    m is `multiplier`; u is a = `label_prob` on the label, $(1 - a) / (C - 1)$ elsewhere. The softmax is of u itself,
    which is already a distribution, so at T = 20 the target is almost uniform. The student's logits z have no
    temperature; the mean is over samples and classes, and there is no $T^2$. Only the student receives gradients.
    """
    assert temperature > 0, temperature
    classes = student.shape[1]
    assert classes > 1, "there are no classes other than the label"
    target = torch.full_like(student, (1.0 - label_prob) / (classes - 1), requires_grad=False)
    target = target.scatter(1, labels[:, None], label_prob)
    return multiplier * divergence(student, target / temperature).mean() / classes


class TFKDReg(ResponseLoss[config.TFKDReg]):
    """`tfkd_reg` of the student's logits and the labels."""

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        return tfkd_reg(student.logits, batch.labels, **keywords(tfkd_reg, self.options))
