"""Shared options of all losses. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

Weight = Annotated[float, Field(ge=0, description="weight of the term")]

WeightOfPair = Annotated[float, Field(ge=0, description="weight of the term, per stage pair")]

Temperature = Annotated[float, Field(gt=0, description="temperature T of both softmaxes")]

StageChoice = Annotated[
    Literal["all", "last", "middle"] | list[str],
    Field(description="stage pairs: all, last, middle, or a list of 'student_stage:teacher_stage'"),
]


@dataclass(frozen=True, kw_only=True)
class NoLoss:
    """No term of this kind."""

    name: Literal["none"] = "none"


@dataclass(frozen=True, kw_only=True)
class Ramp:
    """How a term's weight changes over training.

    `ce_weight` is the cross-entropy weight that the loss was published with if that is not 1 - alpha; alpha then
    defaults to 1. `reads_labels` means that the loss needs a single label per sample, so mixup is rejected.
    `multi_label` means that it also suits images with several labels. `bank_size_per_sample` is how many numbers it
    stores per training image.
    """

    ce_weight: ClassVar[float | None] = None
    reads_labels: ClassVar[bool] = False
    multi_label: ClassVar[bool] = False

    schedule: Annotated[
        Literal["constant", "linear", "sigmoid", "cosine"],
        Field(description="weight over training: constant, or a ramp from 0 (cosine: down to 0)"),
    ] = "constant"
    ramp_epochs: Annotated[float, Field(gt=0, description="length of the ramp in epochs")] = 20.0

    @property
    def bank_size_per_sample(self) -> int:
        return 0


@dataclass(frozen=True, kw_only=True)
class Stages(Ramp):
    """Which stages of the student and the teacher are paired."""

    multi_label: ClassVar[bool] = True

    stages: StageChoice = "all"


def by_name(*options: Any) -> dict[str, type]:
    """Return the table of one kind of losses by name: `NoLoss` and these classes."""
    return {cls.name: cls for cls in (NoLoss, *options)}
