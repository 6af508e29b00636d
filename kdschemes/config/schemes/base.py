"""What the options of all methods share. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

SoftWeight = Annotated[
    float, Field(ge=0, le=1, description="weight of the soft term; 1 with losses published beside a full hard term")
]

HardWeight = Annotated[
    float | None, Field(ge=0, description="weight of the hard term; null: 1 - alpha (or as the loss was published)")
]

RISING_KD = {"response": {"name": "kd", "temperature": 3.0, "schedule": "sigmoid", "ramp_epochs": 80.0}}
"""KD whose weight rises over the first 80 epochs, as ONE, OKDDip, FFL, PCL and mean teacher were published."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """The options of a method, and what the rest of the package must know about it.

    `losses` is what the `losses` group starts from, before recipes and overrides; `variants` gives, by the value of the
    key `variant`, the method's keys that start from another value, and `losses` where they do. `reads_labels` says
    that the method needs one label a sample, so that mixup and cutmix are refused. `averages` says that it keeps a
    moving average of each trained network, `remembers` that it keeps the logits of each training image.
    `continues_training` says that it needs a student that is trained already.
    """

    uses_teacher: ClassVar[bool] = False
    uses_losses: ClassVar[bool] = True
    reads_labels: ClassVar[bool] = False
    averages: ClassVar[bool] = False
    keeps_predictions: ClassVar[bool] = False
    continues_training: ClassVar[bool] = False
    losses: ClassVar[dict[str, Any]] = {}
    variants: ClassVar[dict[str, dict[str, Any]]] = {}

    name: str = ""
    method: str = ""

    def trained_models(self, model: str) -> list[str]:
        """Return the models of the networks that a run with `model.name` trains, one entry per network."""
        return [model]

    def prerequisites(self) -> list[Prerequisite]:
        """Return the runs whose networks teach this one, if the method needs others than the `teacher` group names."""
        return []

    def shared_cards(self) -> dict[str, tuple[str, str]]:
        """Return, by option and value, the scheme and the method whose card describes the option."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Prerequisite:
    """A run that must finish before another one, as a change of that run's configuration.

    `model` None keeps the model, the seed and the number of epochs; otherwise `teacher.seed` and `teacher.epochs` hold.
    """

    scheme: Method
    model: str | None = None


@dataclass(frozen=True, kw_only=True)
class ExitOptions(Method):
    """Where the exits sit and what they are."""

    exits: Annotated[
        Literal["all"] | list[str],
        Field(description="stages with an exit: 'all' but the last, or a list of stage names"),
    ] = "all"
    exit_head: Annotated[
        Literal["linear", "bottleneck"],
        Field(description="linear: pool and classify; bottleneck: convolutions down to the last stage's shape first"),
    ] = "bottleneck"


def by_method(*methods: type[Method]) -> dict[str, type[Method]]:
    """Return the table of a scheme; its first method is the default."""
    return {cls.method: cls for cls in methods}
