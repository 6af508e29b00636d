"""Universal self-knowledge distillation: soft labels from the student's own logits and a shallower stage."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from kdschemes.config.losses import response as config
from kdschemes.core.loss import Endpoint, Gather, embedding, embedding_width, keywords
from kdschemes.core.precision import full_precision
from kdschemes.core.types import Batch, DataSpec, Output
from kdschemes.losses.response.base import ResponseLoss
from kdschemes.losses.rows import without_offset
from kdschemes.losses.stages import match_stages

Rank = Literal["reference", "probabilities"]

_EPSILON = 1e-6


@full_precision
def uskd(
    student: Float[Tensor, "n c"],
    weak: Float[Tensor, "n c"],
    labels: Int[Tensor, " n"],
    *,
    alpha: float,
    beta: float,
    mu: float,
    rank: Rank,
    smoothing: float = 0.1,
) -> Float[Tensor, ""]:
    r"""Return $\alpha L_{target} + \beta L_{non} + \mu L_{weak}$ of `uskd_target`, `uskd_non_target`, `uskd_weak`.

    Yang et al. 2023, "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized
    Loss and Customized Soft Labels". There is no teacher; the weak logits come from a shallower stage. Depends on the
    whole batch. The student's logits receive gradients from the first two parts, the weak logits from the last.
    """
    target = uskd_target(student, labels)
    non_target = uskd_non_target(student, weak, labels, rank=rank)
    return alpha * target + beta * non_target + mu * uskd_weak(weak, labels, smoothing=smoothing)


@full_precision
def uskd_target(student: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    r"""Return $-\frac1N \sum_n w_n \log p_n(y_n)$, $w_n = p_n(y_n)^2 + 1 - \frac1N \sum_m p_m(y_m)^2$.

    Yang et al. 2023: the label's soft target. w is detached, and its mean needs the whole batch.
    """
    log_p = functional.log_softmax(student, dim=1).gather(1, labels[:, None])
    squares = (2.0 * log_p).detach().exp()
    return -((squares + 1.0 - squares.mean()) * log_p).mean()


@full_precision
def uskd_weak(weak: Float[Tensor, "n c"], labels: Int[Tensor, " n"], *, smoothing: float = 0.1) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of the weak logits, with label smoothing as in the authors' code."""
    return functional.cross_entropy(weak, labels, label_smoothing=smoothing)


@full_precision
def uskd_non_target(
    student: Float[Tensor, "n c"], weak: Float[Tensor, "n c"], labels: Int[Tensor, " n"], *, rank: Rank
) -> Float[Tensor, ""]:
    r"""Return $-\frac1N \sum_n \sum_{c \ne y} t_{nc} \log \hat p_{nc}$, $\hat p$ the softmax over the other classes.

    Yang et al. 2023. $t_{nc}$ is $1 / r_{nc}$ (Zipf's law), normalized over $c \ne y$, where r is the rank (from 1) of
    class c among all C classes, including the label, by descending score; ties keep the class order. With p and w the
    probabilities of the student and of the weak logits and $\epsilon = 10^{-6}$, the score is
    $\frac{w_c}{1 - w_y + \epsilon} + \frac{p_c}{1 - p_y + \epsilon}$ in the paper (`rank="probabilities"`); the
    authors' code uses log-probabilities instead of p (`rank="reference"`), so the student's order dominates unless the
    weak logits' probabilities differ a lot. As in the authors' code, 1/r is always rounded to float32. Mean over the
    batch. t is detached; with two classes, value and gradient are 0.
    """
    n, c = student.shape
    label, student = labels[:, None], without_offset(student)
    log_p, log_w = (functional.log_softmax(x.detach(), dim=1) for x in (student, weak))
    log_p_label, log_w_label = log_p.gather(1, label), log_w.gather(1, label)
    score = log_w.exp() / (_EPSILON - torch.expm1(log_w_label))
    if rank == "reference":
        score = score + log_p / (1.0 + _EPSILON - log_p_label)
    else:
        score = score + log_p.exp() / (_EPSILON - torch.expm1(log_p_label))
    order = score.argsort(dim=1, descending=True, stable=True)
    zipf = torch.arange(1, c + 1, dtype=torch.float32, device=student.device).reciprocal().to(student.dtype)
    is_label = torch.zeros_like(score, dtype=torch.bool).scatter(1, label, True)
    soft = torch.zeros_like(score).scatter(1, order, zipf.expand(n, c)).masked_fill(is_label, 0.0)
    soft = soft / soft.sum(dim=1, keepdim=True)
    others = torch.logsumexp(student.masked_fill(is_label, -torch.inf), dim=1, keepdim=True)
    return -(soft * (student - others).masked_fill(is_label, 0.0)).sum(dim=1).mean()


class USKD(ResponseLoss[config.USKD]):
    """`uskd` of the student's logits from all processes; the teacher is ignored.

    The weak logits come from a linear layer on one stage's features, averaged over positions.
    """

    needs_global_batch = True

    def __init__(self, options: config.USKD, *, student: Endpoint, teacher: Endpoint, data_spec: DataSpec) -> None:
        super().__init__(options, student=student, teacher=teacher, data_spec=data_spec)
        self.stage = _stage(options.stage, student)
        self.weak = nn.Linear(embedding_width(student.features[self.stage]), data_spec.num_classes)

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        weak = self.weak(embedding(student.features[self.stage]))
        labels = gather(batch.labels[:, None]).squeeze(1)
        return uskd(gather(student.logits), gather(weak), labels, **keywords(uskd, self.options))


def _stage(choice: str, student: Endpoint) -> str:
    """Return the name of the student's stage; penultimate is the only stage if there is just one."""
    stages = {"penultimate": "all", "middle": "middle"}.get(choice, [f"{choice}:{choice}"])
    return match_stages(stages, student.features, student.features)[-2:][0][0]
