"""What the test file of a loss declares for the checks that every loss has to pass; `table.py` collects it.

A file `tests/losses/<kind>/test_<loss>.py` may have

    CASES: the loss's functions by name, one entry for each variant, as cases of its kind
    OPTIONS: options besides the defaults with which its module is built
    REFERENCES: recorded values (`tests/reference/losses.json`) by name, and how to call ours for them
    FLAGS: where its module differs from others
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kdschemes.core.cross_entropy import cross_entropy

Inputs = dict[str, Tensor]
Parameters = dict[str, Any]
Reference = Callable[[Inputs, Parameters], Tensor]


@dataclass(frozen=True)
class LogitCase:
    """A loss of the student's logits, the teacher's, and the labels, and what its formula allows."""

    loss: Callable[[Tensor, Tensor, Tensor], Tensor]
    student_differentiable: bool = True
    """False: the formula holds something constant that depends on the student's logits."""
    teacher_differentiable: bool = True
    teacher_gradient: bool = True
    """False: the teacher's is 0."""
    reads_teacher: bool = True
    by_sample: bool = True
    """A batch's value is the mean of its samples' values."""
    zero: bool = True
    """Equal logits give 0."""
    shift_free: bool = True
    """A constant added to all logits of a sample changes nothing."""
    rel: float = 1e-4
    """Relative error of the value in low precision."""
    multiplies_matrices: bool = False
    """Autocast rounds what its backward pass multiplies, if that runs inside, too."""


@dataclass(frozen=True)
class MapCase:
    """A loss of the student's and the teacher's maps, its formula in float64, and what it allows."""

    loss: Callable[[Tensor, Tensor], Tensor]
    formula: Callable[[Any, Any], float]
    teacher: int = 6
    """The teacher's channels; the student has 6."""
    teacher_differentiable: bool = True
    resizes: bool = True
    """Maps of different height and width can be compared."""
    scale_free: bool = False
    """A factor of both changes nothing."""
    by_sample: bool = True
    """A batch's value is the mean of its samples' values."""
    channel_order_free: bool = True
    """The same permutation of both sides' channels changes nothing."""
    zero: bool = True
    """Equal maps give 0."""
    flat_at_zero: bool = True
    """And a gradient of 0."""
    sizes_of_gradcheck: tuple[tuple[int, int], ...] = ((3, 2),)


@dataclass(frozen=True)
class RowCase:
    """A loss of the student's and the teacher's embeddings, its formula in float64, and what it allows."""

    loss: Callable[[Tensor, Tensor], Tensor]
    formula: Callable[[Any, Any], float]
    any_width: bool = True
    """The teacher's embeddings may have another width."""
    order_free: bool = True
    """The order of the batch changes nothing."""
    rotation_free: bool = True
    scale_free: bool = False
    """A factor of the student's embeddings changes nothing."""
    flat_at_zero_rows: bool = False
    """Rows of zeros get no gradient."""
    rel: float = 1e-2
    """Relative error of the gradient's norm where the inputs are rounded to half precision."""


@dataclass(frozen=True)
class Flags:
    """What a loss's module does differently from most."""

    teacher_gradient: bool = True
    """The teacher's outputs get a gradient, where they are not detached."""
    reads_teacher: bool = True
    vectors: bool = False
    """Stages that are vectors can be compared."""
    teacher_tokens: bool = True
    """The teacher's stages may be tokens."""
    needs_positions: bool = False
    """Maps of a single position are left out where stages are paired, and refused where they are named."""
    student_classifier: bool = False
    """The gradient reaches the student's classifier, which the loss reads itself."""
    zero_of_one_sample: bool = False
    """The loss of a single sample is 0."""
    single_sample: bool = True
    """A batch of one sample can be trained on."""


def with_hard_term(share: float, term: Tensor, x: Inputs) -> Tensor:
    return share * term + (1 - share) * cross_entropy(x["s"], x["y"])
