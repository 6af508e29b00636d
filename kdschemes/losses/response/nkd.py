"""Normalized KD: NKD (Yang et al. 2023)."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from kdschemes.core.precision import full_precision
from kdschemes.losses.response.dkd import split_label
from kdschemes.losses.response.soft_ce import soft_cross_entropy


@full_precision
def nkd(
    student: Float[Tensor, "n c"],
    teacher: Float[Tensor, "n c"],
    labels: Int[Tensor, " n"],
    *,
    temperature: float = 1.0,
    gamma: float = 1.5,
) -> Float[Tensor, ""]:
    r"""Return $\frac1N \sum_n (-p^t_y \log p^s_y - \gamma T^2 \sum_{c \ne y} \hat p^t_c \log \hat p^s_c)$.

    Yang et al. 2023, "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized
    Loss and Customized Soft Labels". p is the softmax over all classes without temperature, $\hat p$ the softmax at T
    over the C - 1 classes other than the label. Both parts are cross-entropies, so the value at equality is the
    teacher's entropy, not 0. Mean over the batch. The student receives gradients from both parts, the teacher only from
    the second: the weight $p^t_y$ is detached, as in the authors' code.
    """
    assert temperature > 0, temperature
    share = functional.softmax(teacher, dim=1).gather(1, labels[:, None])[:, 0].detach()
    target = share * functional.cross_entropy(student, labels, reduction="none")
    others = [split_label(logits, labels)[1] for logits in (student, teacher)]
    non_target = soft_cross_entropy(*others, temperature=temperature)
    return (target + gamma * temperature**2 * non_target).mean()
