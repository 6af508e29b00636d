"""Shared options of all methods. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

SoftWeight = Annotated[
    float, Field(ge=0, le=1, description="weight of the soft term; 1 for losses published with their own ce_weight")
]

HardWeight = Annotated[
    float | None, Field(ge=0, description="weight of cross-entropy; null: 1 - alpha (or as the loss was published)")
]

RISING_KD = {"response": {"name": "kd", "temperature": 3.0, "schedule": "sigmoid", "ramp_epochs": 80.0}}
"""KD with a weight that ramps up over the first 80 epochs, as published for ONE, OKDDip, FFL, PCL and mean teacher."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """The options of a method, and what the rest of the package must know about it.

    `losses` holds the defaults of the `losses` group; `variants` maps each value of the key `variant` to the defaults
    (of the method's keys and `losses`) that it changes. `reads_labels`: the method needs a single label per sample, so
    mixup and cutmix are rejected. `averages`: it keeps a moving average of each trained network. `keeps_predictions`:
    it stores the logits of each training image. `continues_training`: it needs a student that is already trained.
    `trains_teacher`: its teacher is not frozen. `multi_label`: it also suits images with several labels.
    """

    uses_teacher: ClassVar[bool] = False
    uses_losses: ClassVar[bool] = True
    reads_labels: ClassVar[bool] = False
    averages: ClassVar[bool] = False
    keeps_predictions: ClassVar[bool] = False
    trains_teacher: ClassVar[bool] = False
    continues_training: ClassVar[bool] = False
    multi_label: ClassVar[bool] = False
    losses: ClassVar[dict[str, Any]] = {}
    variants: ClassVar[dict[str, dict[str, Any]]] = {}

    name: str = ""
    method: str = ""

    def trained_models(self, model: str) -> list[str]:
        """Return the models that a run with `model.name` trains, one entry per network."""
        return [model]

    def prerequisites(self) -> list[Prerequisite]:
        """Return the runs whose networks teach this one, if the method needs any beyond the `teacher` group."""
        return []

    def shared_cards(self) -> dict[str, tuple[str, str]]:
        """Return, by option and value, the scheme and method whose card describes the option."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Prerequisite:
    """A run that must finish before another one, as a change to that run's configuration.

    `model` None keeps the model, seed and number of epochs; otherwise `teacher.seed` and `teacher.epochs` apply.
    """

    scheme: Method
    model: str | None = None


@dataclass(frozen=True, kw_only=True)
class ExitOptions(Method):
    """Where the exits are attached and what they consist of."""

    exits: Annotated[
        Literal["all"] | list[str],
        Field(description="stages with an exit: all (except the last), or a list of stage names"),
    ] = "all"
    exit_head: Annotated[
        Literal["linear", "bottleneck"],
        Field(description="linear: pool, classify; bottleneck: first convolve down to the last stage's shape"),
    ] = "bottleneck"


def by_method(*methods: type[Method]) -> dict[str, type[Method]]:
    """Return the table of a scheme; its first method is the default."""
    return {cls.method: cls for cls in methods}
