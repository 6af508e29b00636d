"""Options of the self-distillation methods of one plain network. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from kdschemes.config.schemes.base import Method


@dataclass(frozen=True, kw_only=True)
class SelfDDGSD(Method):
    """Two views of a sample teach each other (Xu & Liu 2019)."""

    losses: ClassVar[dict[str, Any]] = {"response": {"name": "kd", "temperature": 3.0}}

    name: Literal["self"] = "self"
    method: Literal["ddgsd"] = "ddgsd"
    gap: Annotated[
        Literal["channels", "scalar"],
        Field(description="distance of the views' mean features: of each channel (paper), or of one mean of all"),
    ] = "channels"
    gap_weight: Annotated[float, Field(ge=0, description="weight of that distance")] = 5e-4


@dataclass(frozen=True, kw_only=True)
class SelfCSKD(Method):
    """Another sample of the same class teaches (Yun et al. 2020)."""

    reads_labels: ClassVar[bool] = True
    losses: ClassVar[dict[str, Any]] = {"response": {"name": "kd", "temperature": 4.0}}

    name: Literal["self"] = "self"
    method: Literal["cskd"] = "cskd"


@dataclass(frozen=True, kw_only=True)
class SelfPSKD(Method):
    """The predictions of the epoch before soften the labels (Kim et al. 2021)."""

    reads_labels: ClassVar[bool] = True
    remembers: ClassVar[bool] = True
    losses: ClassVar[dict[str, Any]] = {"response": {"name": "soft_ce", "temperature": 1.0}}

    name: Literal["self"] = "self"
    method: Literal["pskd"] = "pskd"
    alpha: Annotated[
        float, Field(ge=0, le=1, description="weight of the past in the last epoch; it grows by equal steps an epoch")
    ] = 0.8


@dataclass(frozen=True, kw_only=True)
class SelfDLB(Method):
    """What the network answered at the step before teaches it on another view of those samples (Shen et al. 2022)."""

    losses: ClassVar[dict[str, Any]] = {"response": {"name": "kd", "temperature": 3.0}}

    name: Literal["self"] = "self"
    method: Literal["dlb"] = "dlb"


@dataclass(frozen=True, kw_only=True)
class SelfEMA(Method):
    """The moving average of the network's weights teaches it: mean teacher (Tarvainen & Valpola 2017)."""

    averages: ClassVar[bool] = True
    losses: ClassVar[dict[str, Any]] = {
        "response": {"name": "kd", "temperature": 3.0, "schedule": "sigmoid", "ramp_epochs": 80.0}
    }

    name: Literal["self"] = "self"
    method: Literal["ema"] = "ema"
    decay: Annotated[float, Field(ge=0, lt=1, description="share of the average that stays at a step")] = 0.999
    warm_up: Annotated[
        bool, Field(description="after step t = 1, 2, ... at most 1 - 1 / (t + 1) stays: the start is forgotten")
    ] = True
    view: Annotated[
        Literal["own", "shared"], Field(description="own: the average sees another random view; shared: the same one")
    ] = "own"


@dataclass(frozen=True, kw_only=True)
class SelfZipf(Method):
    """Soft labels by Zipf's law over ranks that the network's last map votes for (Liang et al. 2022)."""

    uses_losses: ClassVar[bool] = False
    reads_labels: ClassVar[bool] = True

    name: Literal["self"] = "self"
    method: Literal["zipf"] = "zipf"
    weight: Annotated[float, Field(ge=0, description="weight of the term beside cross-entropy, lambda")] = 0.1
    power: Annotated[float, Field(ge=0, le=4, description="a class of rank r gets 1 / r^power")] = 1.0
    votes: Annotated[
        Literal["dense", "logits"],
        Field(description="ranks by votes of the last map's positions, or by the logits themselves"),
    ] = "dense"
    upsample: Annotated[int, Field(ge=1, description="dense: factor by which the map is enlarged, for more votes")] = 2


OwnHard = Annotated[
    float | None, Field(ge=0, description="weight of cross-entropy; null: as the loss was published, else 1")
]


@dataclass(frozen=True, kw_only=True)
class SelfUSKD(Method):
    """Soft labels from the network's own output and a shallower stage (Yang et al. 2023)."""

    reads_labels: ClassVar[bool] = True
    losses: ClassVar[dict[str, Any]] = {"response": {"name": "uskd"}}

    name: Literal["self"] = "self"
    method: Literal["uskd"] = "uskd"
    hard: OwnHard = None


@dataclass(frozen=True, kw_only=True)
class SelfTfKDReg(Method):
    """A teacher made by hand from the label (Yuan et al. 2020)."""

    reads_labels: ClassVar[bool] = True
    losses: ClassVar[dict[str, Any]] = {"response": {"name": "tfkd_reg"}}

    name: Literal["self"] = "self"
    method: Literal["tfkd_reg"] = "tfkd_reg"
    hard: OwnHard = None


SELF_SINGLE: dict[str, type[Method]] = {
    "ddgsd": SelfDDGSD,
    "cskd": SelfCSKD,
    "pskd": SelfPSKD,
    "dlb": SelfDLB,
    "ema": SelfEMA,
    "zipf": SelfZipf,
    "uskd": SelfUSKD,
    "tfkd_reg": SelfTfKDReg,
}
