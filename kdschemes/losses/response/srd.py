"""Simple recipe distillation: SRD (Miles and Mikolajczyk 2024)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from kdschemes.config.losses import response as config
from kdschemes.core.loss import Endpoint, Gather, embedding, embedding_width
from kdschemes.core.precision import full_precision
from kdschemes.core.types import Batch, DataSpec, Output
from kdschemes.losses.response.base import ResponseLoss
from kdschemes.losses.response.kd import kd
from kdschemes.losses.stages import match_stages

_SMALLEST_SUM = 1e-24


@full_precision
def srd_features(student: Float[Tensor, "n d"], teacher: Float[Tensor, "n d"], *, exponent: float) -> Float[Tensor, ""]:
    r"""Return $2 \log(10^{-24} + \sum_{nd} |f^s_{nd} - f^t_{nd}|^e)$ of normalized features, e = `exponent` >= 1.

    Miles, Mikolajczyk 2024, "Understanding the Role of the Projector in Knowledge Distillation". The sum over the batch
    is inside the logarithm: pass the whole batch. The references have no $10^{-24}$, which is below float64 precision
    unless all differences are near $10^{-24/e}$ (1e-6 for e = 4): equal features give $2 \log 10^{-24} = -110.5$ with
    zero gradient instead of -inf and NaN, and gradients near 0 stay bounded. Differences are first divided by their
    largest magnitude, so no power overflows. Gradients flow to both.
    """
    assert exponent >= 1, exponent
    floor: float = _SMALLEST_SUM ** (1.0 / exponent)
    gap = (student - teacher).abs()
    scale = gap.detach().amax().clamp(min=floor)
    powers = (gap / scale).pow(exponent).sum() + (floor / scale).pow(exponent)
    return 2.0 * exponent * scale.log() + 2.0 * powers.log()


@full_precision
def srd(
    student: Float[Tensor, "n d"],
    teacher: Float[Tensor, "n d"],
    *,
    student_logits: Float[Tensor, "n c"],
    teacher_logits: Float[Tensor, "n c"],
    exponent: float,
    temperature: float,
) -> Float[Tensor, ""]:
    r"""Return `srd_features` plus $\frac1N \sum_n KL(p_T(v_n) \| p_T(z_n))$, without $T^2$.

    Miles, Mikolajczyk 2024. Depends on the whole batch. Gradients flow to all four.
    """
    soft = kd(student_logits, teacher_logits, temperature=temperature, scale=False)
    return srd_features(student, teacher, exponent=exponent) + soft


class SRD(ResponseLoss[config.SRD]):
    """Sum over stage pairs of `srd_features`, plus the divergence of the logits, as in `srd`.

    Features are averaged over positions. The student's go through a learned linear layer (without bias, which batch
    norm would cancel), then both through batch norm without affine parameters over the samples of all processes.
    """

    needs_global_batch = True

    def __init__(self, options: config.SRD, *, student: Endpoint, teacher: Endpoint, data_spec: DataSpec) -> None:
        super().__init__(options, student=student, teacher=teacher, data_spec=data_spec)
        self.pairs = match_stages(options.stages, student.features, teacher.features)
        widths = [(embedding_width(student.features[a]), embedding_width(teacher.features[b])) for a, b in self.pairs]
        self.projectors = nn.ModuleList(nn.Linear(ours, theirs, bias=False) for ours, theirs in widths)
        self.student_norms = nn.ModuleList(_norm(theirs, options.norm_epsilon) for _, theirs in widths)
        self.teacher_norms = nn.ModuleList(_norm(theirs, options.norm_epsilon) for _, theirs in widths)

    def teacher_stages(self) -> list[str]:
        return [theirs for _, theirs in self.pairs]

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        alone = self.training and (batch.micro_size or len(batch)) == 1
        z, v = self.logits(student, teacher)
        pairs = []
        for (a, b), project, *norms in zip(
            self.pairs, self.projectors, self.student_norms, self.teacher_norms, strict=True
        ):
            features = project(embedding(student.features[a])), embedding(teacher.features[b])
            ours, theirs = (gather(0.0 * x if alone else norm(x)) for norm, x in zip(norms, features, strict=True))
            pairs.append((ours, theirs))
        value = srd(
            *pairs[-1],
            student_logits=gather(z),
            teacher_logits=gather(v),
            exponent=self.options.exponent,
            temperature=self.options.temperature,
        )
        for ours, theirs in pairs[:-1]:
            value = value + srd_features(ours, theirs, exponent=self.options.exponent)
        return value


def _norm(width: int, epsilon: float) -> nn.Module:
    return nn.BatchNorm1d(width, eps=epsilon, affine=False)
