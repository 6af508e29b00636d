"""Who of several networks is to be believed, sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from kdschemes.core.precision import full_precision
from kdschemes.losses.response.divergence import divergence


@full_precision
def teacher_weights(logits: Float[Tensor, "k n c"], labels: Int[Tensor, " n"]) -> Float[Tensor, "k n"]:
    r"""Return $w_{kn} = \frac1{K-1} (1 - softmax_k(CE(v_{kn}, y_n)))$: more for the teacher that knows the label.

    Zhang et al. 2022, "Confidence-Aware Multi-Teacher Knowledge Distillation". They sum to 1 for each sample.
    Gradients flow to the logits.

    Args:
        logits: of K >= 2 teachers.
        labels: class indices.
    """
    count = len(logits)
    assert count > 1, "one teacher has nobody to be weighed against"
    surprise = -functional.log_softmax(logits, dim=2).gather(2, labels.expand(count, -1)[..., None]).squeeze(2)
    return (1.0 - functional.softmax(surprise, dim=0)) / (count - 1)


@full_precision
def weighted_kd(
    student: Float[Tensor, "n c"],
    teachers: Float[Tensor, "k n c"],
    weights: Float[Tensor, "k n"],
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    r"""Return $\frac{T^2}{NK} \sum_{n,k} w_{kn} KL(p_T(v_{kn}) \| p_T(z_n))$: with the authors' further 1/K.

    Zhang et al. 2022. Gradients flow to all three.

    Args:
        student: logits z.
        teachers: logits v.
        weights: as from `teacher_weights`.
        temperature: T > 0.
    """
    by_teacher = torch.stack([divergence(student, teacher, temperature=temperature) for teacher in teachers])
    return temperature**2 * (weights * by_teacher).mean()


def weighted_hint(
    embedded: Sequence[Float[Tensor, "n ..."]],
    features: Sequence[Float[Tensor, "n ..."]],
    weights: Float[Tensor, "k n"],
) -> Float[Tensor, ""]:
    r"""Return $\frac1{NK} \sum_{n,k} w_{kn} \, mean(r_k(f_n) - f_{kn})^2$, the mean over a sample's elements.

    Zhang et al. 2022. Gradients flow to all three.

    Args:
        embedded: the student's feature in each teacher's space.
        features: the teachers' own.
        weights: as from `teacher_weights`.
    """
    errors = [squared_error(ours, theirs) for ours, theirs in zip(embedded, features, strict=True)]
    return (weights * torch.stack(errors)).mean()


@full_precision
def squared_error(a: Float[Tensor, "n ..."], b: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
    """Return each sample's mean of $(a - b)^2$."""
    assert a.shape == b.shape, f"{tuple(a.shape)} against {tuple(b.shape)}"
    return (a - b).square().flatten(1).mean(dim=1)


@full_precision
def most_confident(
    logits: Float[Tensor, "k n c"], labels: Int[Tensor, " n"], by: Literal["supervised", "max_probability"]
) -> Int[Tensor, " n"]:
    r"""Return who of K is the most confident about each sample; of equals the first.

    Roth et al. 2024, "Fantastic Gains and Where to Find Them". Confidence is the probability of the label's class
    (`supervised`) or the largest probability of any class (`max_probability`), both without temperature.

    Args:
        logits: of K networks.
        labels: class indices; `supervised` alone reads them.
        by: what confidence is.
    """
    log_p = functional.log_softmax(logits, dim=2)
    if by == "supervised":
        return log_p.gather(2, labels.expand(len(logits), -1)[..., None]).squeeze(2).argmax(dim=0)
    return log_p.amax(dim=2).argmax(dim=0)
