"""Refined logit distillation: RLD (Sun et al. 2025)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from kdschemes.core.precision import full_precision
from kdschemes.losses.response.divergence import divergence_by_gap
from kdschemes.losses.response.dkd import log_label_or_not, split_label
from kdschemes.losses.rows import without_offset


@full_precision
def rld(
    student: Float[Tensor, "n c"],
    teacher: Float[Tensor, "n c"],
    labels: Int[Tensor, " n"],
    *,
    temperature: float,
    confidence_temperature: float = 1.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Float[Tensor, ""]:
    r"""Return $\frac1N \sum_n (\alpha \, T_c^2 \, SCD_n + \beta \, T^2 \, MCD_n)$, y the label.

    Sun et al. 2025, "Knowledge Distillation with Refined Logits". Sample confidence: $SCD = KL(b^t \| b^s)$ of
    two-class distributions at $T_c$, $b^t = (\max_c p^t_c, \text{rest})$ and $b^s = (p^s_y, \text{rest})$: the student
    is to be as sure of the label as the teacher is of whatever it predicts. Masked correlation: $MCD = KL(q^t \| q^s)$
    of the softmaxes at T over the classes that the teacher ranks below the label; a wrong teacher teaches nothing about
    the classes that it prefers. It is 0 if fewer than two classes remain. Mean over the batch; gradients flow to both,
    not through the choice of the classes.
    """
    assert temperature > 0, temperature
    assert confidence_temperature > 0, confidence_temperature
    z, v = without_offset(student), without_offset(teacher)
    of_label = log_label_or_not(*split_label(z / confidence_temperature, labels))
    of_prediction = log_label_or_not(*split_label(v / confidence_temperature, v.detach().argmax(dim=1)))
    confidence = divergence_by_gap(of_label - of_prediction, of_prediction, of_label)
    below = v < v.gather(1, labels[:, None])
    some = below.any(dim=1)
    left_out = ~below & some[:, None]
    log_p, log_q = (
        functional.log_softmax((logits / temperature).masked_fill(left_out, float("-inf")), dim=1) for logits in (v, z)
    )
    correlation = divergence_by_gap((z - v) / temperature, log_p, log_q)
    correlation = torch.where(some, correlation, 0.0)
    return (alpha * confidence_temperature**2 * confidence + beta * temperature**2 * correlation).mean()
