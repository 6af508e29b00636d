"""Simple recipe distillation: the logarithm of a high power of the difference of normalised features."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from kdschemes.losses.precision import full_precision
from kdschemes.losses.response.soft import kd

_SMALLEST_SUM = 1e-24


@full_precision
def srd_features(student: Float[Tensor, "n d"], teacher: Float[Tensor, "n d"], *, exponent: float) -> Float[Tensor, ""]:
    r"""Return $2 \log(10^{-24} + \sum_{nd} |f^s_{nd} - f^t_{nd}|^e)$.

    Miles, Mikolajczyk 2024, "Understanding the Role of the Projector in Knowledge Distillation". The sum over the
    batch is inside the logarithm: give it the whole batch. The references have no $10^{-24}$, which is below
    float64's precision unless all differences are near $10^{-24/e}$ (1e-6 for e = 4): equal features have the value
    $2 \log 10^{-24} = -110.5$ and a gradient of 0 instead of -inf and NaN, and differences near 0 no unbounded
    gradient. Differences are divided by their largest magnitude first, so no power overflows. Gradients flow to both.

    Args:
        student: features, projected and normalised.
        teacher: features, normalised.
        exponent: e >= 1.
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

    Miles, Mikolajczyk 2024. The value depends on the whole batch. Gradients flow to all four.

    Args:
        student: features, projected and normalised.
        teacher: features, normalised.
        student_logits: z.
        teacher_logits: v.
        exponent: e >= 1 of the feature part.
        temperature: T > 0 of the logit part.
    """
    soft = kd(student_logits, teacher_logits, temperature=temperature, scale=False)
    return srd_features(student, teacher, exponent=exponent) + soft
