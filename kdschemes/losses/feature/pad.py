"""Prime-aware adaptive distillation: PAD (Zhang et al. 2020)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from kdschemes.config.losses import feature as config
from kdschemes.core.loss import Endpoint, Gather, embedding, embedding_width
from kdschemes.core.precision import full_precision
from kdschemes.core.types import DataSpec
from kdschemes.losses.stages import StageLoss


@full_precision
def pad(
    student: Float[Tensor, "n d"],
    teacher: Float[Tensor, "n d"],
    *,
    log_variance: Float[Tensor, "n d"],
    eps: float = 1e-6,
) -> Float[Tensor, ""]:
    r"""Return $\frac1{ND} \sum_{n,d} \frac{(t_{nd} - s_{nd})^2}{\epsilon + e^{v_{nd}}} + v_{nd}$.

    Zhang et al. 2020, "Prime-Aware Adaptive Distillation": a Gaussian likelihood with predicted `log_variance` v, so
    that samples that cannot be matched get less weight. Mean over dimensions and the batch (torchdistill's convention;
    no factor 1/2). Gradients flow to all three. The weight $e^{-\log(\epsilon + e^v)}$ is finite for any v, because it
    is computed in log space.
    """
    assert eps > 0, eps
    precision = torch.exp(-torch.logaddexp(log_variance, log_variance.new_tensor(math.log(eps))))
    return ((teacher - student).square() * precision + log_variance).mean()


class PAD(StageLoss[config.PAD]):
    """Sum over stage pairs of `pad` of the stages' features averaged over positions.

    The log-variance comes from a learned linear layer and batch norm on the student's embedding; a batch of one sample
    is normalized by the running statistics. If widths differ, another linear layer projects the student's embedding to
    the teacher's width.
    """

    def __init__(self, options: config.PAD, *, student: Endpoint, teacher: Endpoint, data_spec: DataSpec) -> None:
        super().__init__(options, student=student, teacher=teacher, data_spec=data_spec)
        self.projections, self.variances = nn.ModuleList(), nn.ModuleList()
        for a, b in self.pairs:
            ours, theirs = embedding_width(student.features[a]), embedding_width(teacher.features[b])
            self.projections.append(nn.Identity() if ours == theirs else nn.Linear(ours, theirs))
            self.variances.append(nn.Sequential(nn.Linear(ours, theirs, bias=False), nn.BatchNorm1d(theirs)))

    def pair_loss(self, number: int, student: Tensor, teacher: Tensor, gather: Gather) -> Float[Tensor, ""]:
        ours = embedding(student)
        log_variance = _log_variance(self.variances[number], ours)
        projected = self.projections[number](ours)
        return pad(projected, embedding(teacher), log_variance=log_variance, eps=self.options.eps)


def _log_variance(layers: nn.Module, embeddings: Tensor) -> Tensor:
    assert isinstance(layers, nn.Sequential)
    linear, norm = layers
    predicted: Tensor = linear(embeddings)
    if type(norm) is nn.BatchNorm1d and norm.training and len(predicted) == 1:
        mean, variance = norm.running_mean, norm.running_var
        return functional.batch_norm(predicted, mean, variance, norm.weight, norm.bias, eps=norm.eps)
    normalized: Tensor = norm(predicted)
    return normalized
