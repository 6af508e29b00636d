"""Correlation congruence: CC (Peng et al. 2019), with the paper's kernel or the neighbor product of public tables."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kdschemes.config.losses import relation as config
from kdschemes.core.loss import Endpoint, Gather, embedding, embedding_width, keywords
from kdschemes.core.precision import full_precision
from kdschemes.core.types import DataSpec
from kdschemes.losses.rows import unit_rows
from kdschemes.losses.stages import Embedding, StageLoss


@full_precision
def neighbor_congruence(student: Float[Tensor, "n d"], teacher: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    r"""Return the mean over n = 1 .. N-1 of $\sum_d \delta_{nd} \delta_{n+1,d}$, $\delta = |x^s - x^t|$.

    RepDistiller's version of Peng et al. 2019, "Correlation Congruence for Knowledge Distillation", used in public
    tables; it differs from the paper and depends on the order of the batch. A batch of 1 gives 0 with zero gradient.
    Gradients flow to both. Depends on pairs of samples: pass the whole batch.
    """
    if len(student) == 1:
        return 0.0 * (student.sum() + teacher.sum())
    gap = (student - teacher).abs()
    return (gap[:-1] * gap[1:]).sum(dim=1).mean()


@full_precision
def kernel_congruence(
    student: Float[Tensor, "n ds"], teacher: Float[Tensor, "n dt"], *, gamma: float, order: int
) -> Float[Tensor, ""]:
    r"""Return the mean over all N^2 pairs of $(K^s_{ij} - K^t_{ij})^2$.

    Peng et al. 2019, "Correlation Congruence for Knowledge Distillation":
    $K_{ij} = e^{-2\gamma} \sum_{p=0}^{P} \frac{(2\gamma)^p}{p!} (e_i \cdot e_j)^p$ is the Taylor series of the Gaussian
    kernel of the embeddings $e = x / \|x\|$ up to P = `order`. A zero embedding stays 0 and has no gradient. A batch of
    1 gives 0 with zero gradient. Gradients flow to both. Depends on pairs of samples: pass the whole batch.
    """
    assert gamma > 0, gamma
    assert order > 0, order
    if len(student) == 1:
        return 0.0 * (student.sum() + teacher.sum())
    return (_series(student, gamma, order) - _series(teacher, gamma, order)).square().mean()


def _series(x: Tensor, gamma: float, order: int) -> Tensor:
    """Return the kernel without its constant term, which cancels in the difference."""
    unit = unit_rows(x)
    cosine = unit @ unit.mT
    kernel = torch.zeros_like(cosine)
    for p in range(order, 0, -1):
        kernel = cosine * ((2 * gamma) ** p / math.factorial(p) + kernel)
    return math.exp(-2 * gamma) * kernel


class CC(StageLoss[config.CC]):
    """Sum over stage pairs of `neighbor_congruence` or `kernel_congruence`, depending on `options.variant`.

    Features are averaged over positions. Neighbors are compared after a linear layer on each side, both trained with
    the student; the kernel compares samples within a network and needs no layer.
    """

    needs_global_batch = True

    def __init__(self, options: config.CC, *, student: Endpoint, teacher: Endpoint, data_spec: DataSpec) -> None:
        super().__init__(options, student=student, teacher=teacher, data_spec=data_spec)
        self.embeddings = nn.ModuleList()
        if options.variant == "neighbor":
            for a, b in self.pairs:
                widths = (embedding_width(student.features[a]), embedding_width(teacher.features[b]))
                self.embeddings.append(nn.ModuleList(Embedding(width, options.dimension) for width in widths))

    def pair_loss(self, number: int, student: Tensor, teacher: Tensor, gather: Gather) -> Float[Tensor, ""]:
        ours, theirs = embedding(student), embedding(teacher)
        if self.options.variant == "kernel":
            return kernel_congruence(gather(ours), gather(theirs), **keywords(kernel_congruence, self.options))
        embed_student, embed_teacher = self.embeddings[number].children()
        return neighbor_congruence(gather(embed_student(ours)), gather(embed_teacher(theirs)))
