"""Variational information distillation: VID (Ahn et al. 2019)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kdschemes.config.losses import feature as config
from kdschemes.core.loss import Endpoint, Gather
from kdschemes.core.precision import full_precision
from kdschemes.core.types import DataSpec
from kdschemes.errors import UserError
from kdschemes.losses.stages import StageLoss, map_shapes, match_size
from kdschemes.models.recombined import as_map


@full_precision
def vid(
    student: Float[Tensor, "n c hs ws"],
    teacher: Float[Tensor, "n c ht wt"],
    *,
    raw_variance: Float[Tensor, " c"],
    eps: float = 1e-5,
) -> Float[Tensor, ""]:
    r"""Return the mean over all elements of $\frac12 ((\mu - t)^2 / \sigma_c^2 + \log \sigma_c^2)$.

    Ahn et al. 2019, "Variational Information Distillation for Knowledge Transfer": the negative log-likelihood of the
    teacher's features under a Gaussian with mean $\mu$ (`student`, regressed from its features) and a trained variance
    per channel, $\sigma_c^2 = \mathrm{softplus}(\rho_c) + \epsilon$, $\rho$ = `raw_variance`. The constant
    $\frac12 \log 2\pi$ is omitted, as in RepDistiller, so the value may be negative. Maps of different size are first
    average-pooled to the smaller height and width. Gradients flow to both and to $\rho$.
    """
    assert eps > 0, eps
    student, teacher = match_size(student, teacher)
    variance = torch.logaddexp(raw_variance, torch.zeros_like(raw_variance)) + eps
    gap = (student - teacher).square() / variance[:, None, None]
    return 0.5 * (gap.mean() + variance.log().mean())


def vid_raw_variance(variance: float, channels: int, *, eps: float = 1e-5) -> Float[Tensor, " c"]:
    """Return the rho of `vid` for which every channel has this variance (> eps)."""
    assert variance > eps, f"variance {variance}, eps {eps}"
    excess = variance - eps
    return torch.full((channels,), excess + math.log(-math.expm1(-excess)))


class VID(StageLoss[config.VID]):
    """Sum over stage pairs of `vid`, with the mean regressed from the student's map.

    The regressor is three 1x1 convolutions with the teacher's channels, without bias, with ReLUs in between, after the
    larger of the two maps is average-pooled to the smaller size. The variances are trained with it. Square tokens count
    as a map, a vector as a 1x1 map.
    """

    def __init__(self, options: config.VID, *, student: Endpoint, teacher: Endpoint, data_spec: DataSpec) -> None:
        if options.variance <= options.eps:
            raise UserError(f"vid needs an initial variance above eps={options.eps}, not {options.variance}")
        super().__init__(options, student=student, teacher=teacher, data_spec=data_spec)
        self.regressors, self.raw_variances = nn.ModuleList(), nn.ParameterList()
        for pair in self.pairs:
            (before, *_), (width, *_) = map_shapes("vid", pair, student, teacher)
            first, *others = (nn.Conv2d(c, width, 1, bias=False) for c in (before, width, width))
            self.regressors.append(nn.Sequential(first, *(m for conv in others for m in (nn.ReLU(), conv))))
            self.raw_variances.append(nn.Parameter(vid_raw_variance(options.variance, width, eps=options.eps)))

    def pair_loss(self, number: int, student: Tensor, teacher: Tensor, gather: Gather) -> Float[Tensor, ""]:
        ours, theirs = match_size(as_map(student), as_map(teacher))
        mean = self.regressors[number](ours)
        return vid(mean, theirs, raw_variance=self.raw_variances[number], eps=self.options.eps)
