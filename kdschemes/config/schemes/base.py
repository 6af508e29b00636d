"""What the options of all methods share. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field


@dataclass(frozen=True, kw_only=True)
class Method:
    """What a method takes from the other groups of a configuration.

    `losses` is what the `losses` group starts from, before recipes and overrides; `variants` gives, by the value of the
    key `variant`, the method's keys that start from another value, and `losses` where they do. `reads_labels` says
    that the method needs one label a sample, so that mixup and cutmix are refused. `averages` says that it keeps a
    moving average of each trained network, `remembers` that it keeps the logits of each training image.
    """

    uses_teacher: ClassVar[bool] = False
    uses_losses: ClassVar[bool] = True
    reads_labels: ClassVar[bool] = False
    averages: ClassVar[bool] = False
    remembers: ClassVar[bool] = False
    losses: ClassVar[dict[str, Any]] = {}
    variants: ClassVar[dict[str, dict[str, Any]]] = {}

    name: str
    method: str


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
