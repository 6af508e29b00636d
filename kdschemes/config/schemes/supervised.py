"""Options of the baselines. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kdschemes.config.schemes.base import ExitOptions, Method, by_method

LabelSmoothingMass = Annotated[float, Field(ge=0, lt=1, description="label mass spread evenly over classes")]

LabelSmoothingOver = Annotated[
    Literal["all", "others"],
    Field(description="which classes share that mass: all C, or the C - 1 other than the label"),
]


@dataclass(frozen=True, kw_only=True)
class SmoothedLabels(Method):
    """Cross-entropy on optionally smoothed labels."""

    uses_losses: ClassVar[bool] = False

    label_smoothing: LabelSmoothingMass = 0.0
    label_smoothing_over: LabelSmoothingOver = "all"

    def shared_cards(self) -> dict[str, tuple[str, str]]:
        """Return the card of label smoothing where labels are smoothed."""
        smoothed: dict[str, tuple[str, str]] = {
            f"label_smoothing={self.label_smoothing}": (LabelSmoothing.name, LabelSmoothing.method)
        }
        return smoothed if self.label_smoothing else {}


@dataclass(frozen=True, kw_only=True)
class Supervised(SmoothedLabels):
    """Cross-entropy only: the baseline."""

    multi_label: ClassVar[bool] = True

    name: Literal["supervised"] = "supervised"
    method: Literal["ce"] = "ce"


@dataclass(frozen=True, kw_only=True)
class LabelSmoothing(SmoothedLabels):
    """Cross-entropy on smoothed labels: a baseline that beats several published methods."""

    name: Literal["supervised"] = "supervised"
    method: Literal["label_smoothing"] = "label_smoothing"
    label_smoothing: LabelSmoothingMass = 0.1


@dataclass(frozen=True, kw_only=True)
class DeepSupervision(SmoothedLabels, ExitOptions):
    """Exits with cross-entropy only: the baseline for self-distillation."""

    multi_label: ClassVar[bool] = True

    name: Literal["supervised"] = "supervised"
    method: Literal["deep_supervision"] = "deep_supervision"


SUPERVISED = by_method(Supervised, LabelSmoothing, DeepSupervision)
