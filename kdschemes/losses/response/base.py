"""What the losses between logits share."""

from __future__ import annotations

import warnings
from typing import Any

from jaxtyping import Float
from torch import Tensor

from kdschemes.core.loss import Loss, Options, Side
from kdschemes.core.types import Output, Task
from kdschemes.errors import UserError
from kdschemes.losses.response.standardise import standardise


class LogitLoss(Loss[Options]):
    """A loss of two logits, standardised first if `options.standardise` says so."""

    pairs: Any = ()

    def __init__(self, options: Options, *, student: Side, teacher: Side, task: Task) -> None:
        super().__init__(options, student=student, teacher=teacher, task=task)
        if task.num_classes < 2:
            raise UserError(
                f"{options.name} needs at least 2 classes, the task has {task.num_classes}: "  # type: ignore[attr-defined]
                "choose a feature or relation loss"
            )
        self.standardise: bool = getattr(options, "standardise", False)
        if self.standardise and task.num_classes == 2:
            warnings.warn(
                "standardised logits of 2 classes are always the same but for their sign: this loss teaches nothing",
                stacklevel=2,
            )

    def logits(self, student: Output, teacher: Output) -> tuple[Float[Tensor, "n classes"], Float[Tensor, "n classes"]]:
        """Return the student's and the teacher's logits as the loss compares them."""
        z, v = student.logits, teacher.logits
        return (standardise(z), standardise(v)) if self.standardise else (z, v)


def _width(shape: tuple[int, ...]) -> int:
    return shape[0] if len(shape) == 3 else shape[-1]
