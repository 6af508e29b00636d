"""Options of every scheme and method, and the tables that name them. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

LabelSmoothingMass = Annotated[float, Field(ge=0, lt=1, description="mass spread evenly over classes")]
LabelSmoothingOver = Annotated[
    Literal["all", "others"], Field(description="classes that share it: all C, or the C - 1 that are not the label's")
]


@dataclass(frozen=True, kw_only=True)
class Supervised:
    """Cross-entropy on the labels alone: the baseline."""

    name: Literal["supervised"] = "supervised"
    method: Literal["ce"] = "ce"
    label_smoothing: LabelSmoothingMass = 0.0
    label_smoothing_over: LabelSmoothingOver = "all"


@dataclass(frozen=True, kw_only=True)
class LabelSmoothing:
    """Cross-entropy on smoothed labels: the baseline that several published methods lose to."""

    name: Literal["supervised"] = "supervised"
    method: Literal["label_smoothing"] = "label_smoothing"
    label_smoothing: LabelSmoothingMass = 0.1
    label_smoothing_over: LabelSmoothingOver = "all"


@dataclass(frozen=True, kw_only=True)
class ExitOptions:
    """Where the exits sit and what they are."""

    exits: Annotated[
        Literal["all"] | list[str],
        Field(description="stages with an exit: 'all' but the last, or a list of stage names"),
    ] = "all"
    exit_head: Annotated[
        Literal["linear", "bottleneck"],
        Field(description="linear: pool and classify; bottleneck: convolutions down to the last stage's shape first"),
    ] = "bottleneck"


@dataclass(frozen=True, kw_only=True)
class DeepSupervision(ExitOptions):
    """Exits with cross-entropy only: the baseline of self-distillation."""

    name: Literal["supervised"] = "supervised"
    method: Literal["deep_supervision"] = "deep_supervision"
    label_smoothing: LabelSmoothingMass = 0.0
    label_smoothing_over: LabelSmoothingOver = "all"


@dataclass(frozen=True, kw_only=True)
class OfflineKD:
    """One or several frozen teachers teach a student (Hinton et al. 2015)."""

    name: Literal["offline"] = "offline"
    method: Literal["kd"] = "kd"
    alpha: Annotated[
        float, Field(ge=0, le=1, description="weight of the soft term; 1 with losses published beside a full hard term")
    ] = 0.9
    hard: Annotated[
        float | None, Field(ge=0, description="weight of the hard term; null: 1 - alpha (or as the loss was published)")
    ] = None


@dataclass(frozen=True, kw_only=True)
class OnlineDML:
    """Peers trained together, each taught by all others (Zhang et al. 2018)."""

    name: Literal["online"] = "online"
    method: Literal["dml"] = "dml"
    peers: Annotated[
        Annotated[int, Field(ge=2)] | Annotated[list[str], Field(min_length=2)],
        Field(description="how many peers of model=..., or a list of models, one a peer"),
    ] = 2
    topology: Annotated[
        Literal["independent", "shared_stem"],
        Field(description="separate networks, or one trunk with a branch a peer"),
    ] = "independent"
    split: Annotated[
        str | None, Field(description="shared_stem: the first stage that each peer has for itself (default: the last)")
    ] = None


@dataclass(frozen=True, kw_only=True)
class SelfBYOT(ExitOptions):
    """The deepest exit teaches each shallower one (Zhang et al. 2019)."""

    name: Literal["self"] = "self"
    method: Literal["byot"] = "byot"
    alpha: Annotated[
        float, Field(ge=0, le=1, description="weight of the soft term of an exit; its hard term has 1 - alpha")
    ] = 0.5


SCHEMES: dict[str, dict[str, type]] = {
    "supervised": {"ce": Supervised, "label_smoothing": LabelSmoothing, "deep_supervision": DeepSupervision},
    "offline": {"kd": OfflineKD},
    "online": {"dml": OnlineDML},
    "self": {"byot": SelfBYOT},
}
"""Every scheme, its methods and their options; a scheme's first method is its default."""

LOSS_DEFAULTS: dict[type, dict[str, Any]] = {
    OfflineKD: {"response": {"name": "kd"}},
    OnlineDML: {"response": {"name": "kd", "temperature": 1.0}},
    SelfBYOT: {"response": {"name": "kd", "temperature": 3.0}, "feature": {"name": "hint", "weight": 0.03}},
}
"""The `losses` group that a method starts from, before recipes and overrides."""
