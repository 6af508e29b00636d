"""Base classes of the losses between logits."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor

from kdschemes.core.loss import Endpoint, Gather, Loss, Options, keywords
from kdschemes.core.types import Batch, DataSpec, Output
from kdschemes.errors import UserError
from kdschemes.losses.response.standardize import standardize


class ResponseLoss(Loss[Options]):
    """A loss between logits, which are first standardized if `options.standardize`."""

    def __init__(self, options: Options, *, student: Endpoint, teacher: Endpoint, data_spec: DataSpec) -> None:
        super().__init__(options, student=student, teacher=teacher, data_spec=data_spec)
        if data_spec.num_classes < 2:
            raise UserError(
                f"{options.name} needs at least 2 classes, the data has {data_spec.num_classes}: "  # type: ignore[attr-defined]
                "choose a feature or relation loss"
            )
        self.standardize: bool = getattr(options, "standardize", False)
        if self.standardize and data_spec.num_classes == 2:
            warnings.warn(
                "standardized logits of 2 classes differ only in sign: this loss teaches nothing",
                stacklevel=2,
            )

    def teacher_stages(self) -> list[str]:
        return []

    def logits(self, student: Output, teacher: Output) -> tuple[Float[Tensor, "n classes"], Float[Tensor, "n classes"]]:
        """Return the student's and the teacher's logits, standardized if `options.standardize`."""
        z, v = student.logits, teacher.logits
        return (standardize(z), standardize(v)) if self.standardize else (z, v)


class LogitLoss(ResponseLoss[Any]):
    """A pure function of both logits, with option fields passed as keyword arguments of the same names.

    Args:
        function: function of the student's and the teacher's logits.
        labels: whether the labels are its third argument.
        gather: whether it compares samples and therefore needs those of all processes.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        options: Any,
        *,
        student: Endpoint,
        teacher: Endpoint,
        data_spec: DataSpec,
        labels: bool = False,
        gather: bool = False,
    ) -> None:
        super().__init__(options, student=student, teacher=teacher, data_spec=data_spec)
        assert not (labels and gather), "labels are not gathered"
        self.function = partial(function, **keywords(function, options))
        self.labels = labels
        self.needs_global_batch = gather

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        logits = self.logits(student, teacher)
        if self.needs_global_batch:
            return self.function(*map(gather, logits))
        return self.function(*logits, *([batch.labels] if self.labels else []))
