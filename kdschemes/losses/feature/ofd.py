"""Overhaul of feature distillation: OFD (Heo et al. 2019b)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from kdschemes.config.losses import feature as config
from kdschemes.core.loss import Endpoint, Gather
from kdschemes.core.precision import full_precision
from kdschemes.core.types import DataSpec
from kdschemes.errors import UserError
from kdschemes.losses.feature.ab import ActivationLoss
from kdschemes.losses.stages import match_size

_LOG_SQRT_2PI = 0.9189385332046727

_TINY_MASS = 1e-3

_DEVIATIONS_WHERE_TINY = 3.0


@full_precision
def ofd(
    student: Float[Tensor, "n c hs ws"], teacher: Float[Tensor, "n c ht wt"], *, margin: Float[Tensor, " c"]
) -> Float[Tensor, ""]:
    r"""Return the mean over samples of $\sum_{chw} (s - t')^2 \, [t' > 0 \lor s > t']$ with $t' = \max(t, m_c)$.

    Heo et al. 2019, "A Comprehensive Overhaul of Feature Distillation": the partial squared distance to the teacher's
    margin ReLU, with m from `ofd_margin`; s and t are maps before the activation. A student neuron below a nonpositive
    target is ignored. Sum over channels and positions, as in mdistiller (the authors also divide by 1000); stage
    weights are up to the caller. Maps of different size are first average-pooled to the smaller height and width
    (mdistiller always resizes the teacher's map to the student's size). Gradients flow to both, to the teacher only
    where t > m, and not to the margins.
    """
    student, teacher = match_size(student, teacher)
    floor = margin.detach().to(teacher.dtype)[:, None, None]
    target = torch.where(teacher <= floor, floor, teacher)
    gap = torch.where((target <= 0) & (student <= target), 0.0, student - target)
    return gap.square().sum(dim=(1, 2, 3)).mean()


@torch.no_grad()
@full_precision
def ofd_margin(weight: Float[Tensor, " c"], bias: Float[Tensor, " c"]) -> Float[Tensor, " c"]:
    r"""Return the expected negative value of the output of a batch norm with weight w and bias b, per channel.

    Heo et al. 2019, "A Comprehensive Overhaul of Feature Distillation": for $x \sim N(b, w^2)$,
    $E[x \mid x < 0] = b - |w| \, \varphi(b / |w|) / \Phi(-b / |w|)$. If almost nothing is negative
    ($\Phi \le 10^{-3}$), the authors use $-3 |w|$. A weight of 0 gives the limit min(b, 0), where the references divide
    by zero. Computed in float64 from logarithms, without gradient.
    """
    std, mean = weight.double().abs(), bias.double()
    nonzero = std != 0
    z = mean / torch.where(nonzero, std, 1.0)
    log_mass = torch.special.log_ndtr(-z)
    tail = std * (-0.5 * z.square() - _LOG_SQRT_2PI - log_mass).exp()
    rare = log_mass.exp() <= _TINY_MASS
    margin = torch.where(rare, -_DEVIATIONS_WHERE_TINY * std, mean - tail)
    return torch.where(nonzero, margin, mean.clamp(max=0.0)).to(weight.dtype)


class OFD(ActivationLoss):
    """Weighted sum over stage pairs of `ofd`, as in `ActivationLoss`.

    The teacher's stages must end in batch norm and ReLU; the margins come from the batch norm's weight and bias when
    the loss is built.
    """

    def __init__(self, options: config.OFD, *, student: Endpoint, teacher: Endpoint, data_spec: DataSpec) -> None:
        super().__init__(options, student=student, teacher=teacher, data_spec=data_spec)
        if teacher.network is None:
            raise UserError(
                "ofd uses the batch norm before the teacher's ReLU, but the teacher is not a whole network: "
                "choose another feature loss"
            )
        activated = teacher.network.activated
        for number, (_, b) in enumerate(self.pairs):
            if b not in activated:
                raise UserError(
                    f"ofd needs a teacher stage that ends in batch norm and ReLU, but '{b}' does not: "
                    + (f"pair one of {', '.join(activated)}" if activated else "choose another teacher or loss")
                )
            norm = activated[b]
            self.register_buffer(f"margin{number}", ofd_margin(norm.weight, norm.bias))

    def pair_loss(self, number: int, student: Tensor, teacher: Tensor, gather: Gather) -> Float[Tensor, ""]:
        return ofd(student, teacher, margin=self.get_buffer(f"margin{number}"))
