"""Cross-entropy with softened outputs (Hinton et al. 2015)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kdschemes.core.precision import full_precision
from kdschemes.losses.rows import without_offset


@full_precision
def soft_ce(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], *, temperature: float, scale: bool = True
) -> Float[Tensor, ""]:
    r"""Return the cross-entropy with soft targets: $-T^2 \frac1N \sum_n \sum_c p_T(v_n)_c \log p_T(z_n)_c$.

    Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network": `kd` plus the entropy of the teacher's
    output, which is also the value at equality. The student's gradient is the same as for `kd`; gradients flow to both.
    Mean over the batch; `scale=False` omits $T^2$.
    """
    value = soft_cross_entropy(student, teacher, temperature=temperature).mean()
    return temperature**2 * value if scale else value


def soft_cross_entropy(
    student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"], *, temperature: float
) -> Float[Tensor, " n"]:
    r"""Return $-\sum_c p_T(v_n)_c \log p_T(z_n)_c$ of every sample; inputs are at least float32."""
    assert temperature > 0, temperature
    p = functional.softmax(without_offset(teacher) / temperature, dim=1)
    return -(p * functional.log_softmax(without_offset(student) / temperature, dim=1)).sum(dim=1)
