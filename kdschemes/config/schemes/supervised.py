"""Options of the baselines. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kdschemes.config.schemes.base import ExitOptions, Method

LabelSmoothingMass = Annotated[float, Field(ge=0, lt=1, description="mass spread evenly over classes")]

LabelSmoothingOver = Annotated[
    Literal["all", "others"], Field(description="classes that share it: all C, or the C - 1 that are not the label's")
]


@dataclass(frozen=True, kw_only=True)
class Supervised(Method):
    """Cross-entropy on the labels alone: the baseline."""

    uses_losses: ClassVar[bool] = False

    name: Literal["supervised"] = "supervised"
    method: Literal["ce"] = "ce"
    label_smoothing: LabelSmoothingMass = 0.0
    label_smoothing_over: LabelSmoothingOver = "all"


@dataclass(frozen=True, kw_only=True)
class LabelSmoothing(Method):
    """Cross-entropy on smoothed labels: the baseline that several published methods lose to."""

    uses_losses: ClassVar[bool] = False

    name: Literal["supervised"] = "supervised"
    method: Literal["label_smoothing"] = "label_smoothing"
    label_smoothing: LabelSmoothingMass = 0.1
    label_smoothing_over: LabelSmoothingOver = "all"


@dataclass(frozen=True, kw_only=True)
class DeepSupervision(ExitOptions):
    """Exits with cross-entropy only: the baseline of self-distillation."""

    uses_losses: ClassVar[bool] = False

    name: Literal["supervised"] = "supervised"
    method: Literal["deep_supervision"] = "deep_supervision"
    label_smoothing: LabelSmoothingMass = 0.0
    label_smoothing_over: LabelSmoothingOver = "all"


SUPERVISED: dict[str, type[Method]] = {
    "ce": Supervised,
    "label_smoothing": LabelSmoothing,
    "deep_supervision": DeepSupervision,
}
