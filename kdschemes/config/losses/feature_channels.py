"""Options of the losses between channels, distributions of features, and features read by the teacher's classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kdschemes.config.losses.base import Ramp, StageChoice, Stages, Temperature, Weight, WeightOfPair


@dataclass(frozen=True, kw_only=True)
class CWD(Stages):
    """Divergence between channels as distributions over positions (Shu et al. 2021)."""

    name: Literal["cwd"] = "cwd"
    weight: WeightOfPair = 50.0
    temperature: Temperature = 4.0


@dataclass(frozen=True, kw_only=True)
class PKD(Stages):
    """Squared difference of maps standardised by channel: Pearson correlation (Cao et al. 2022)."""

    name: Literal["pkd"] = "pkd"
    weight: WeightOfPair = 6.0
    eps: Annotated[float, Field(gt=0, description="added to a channel's deviation")] = 1e-6


@dataclass(frozen=True, kw_only=True)
class PAD(Stages):
    """Squared difference of embeddings over a predicted variance, plus its logarithm (Zhang et al. 2020)."""

    name: Literal["pad"] = "pad"
    weight: WeightOfPair = 1.0
    stages: StageChoice = "last"
    eps: Annotated[float, Field(gt=0, description="added to the predicted variance")] = 1e-6


@dataclass(frozen=True, kw_only=True)
class ICKD(Stages):
    """Squared difference of the correlations between channels (Liu et al. 2021)."""

    name: Literal["ickd"] = "ickd"
    weight: WeightOfPair = 2.5
    stages: StageChoice = "last"


@dataclass(frozen=True, kw_only=True)
class SRRL(Ramp):
    """The last features in the teacher's space, and what its classifier says of them (Yang et al. 2021)."""

    name: Literal["srrl"] = "srrl"
    weight: Weight = 1.0
    alpha: Annotated[float, Field(ge=0, description="weight of feature matching within the term")] = 1.0
    beta: Annotated[float, Field(ge=0, description="weight of softmax regression within the term")] = 1.0


@dataclass(frozen=True, kw_only=True)
class CATKD(Ramp):
    """Squared difference of class activation maps (Guo et al. 2023)."""

    name: Literal["cat_kd"] = "cat_kd"
    weight: Weight = 0.7
    resolution: Annotated[int, Field(ge=1, description="side to which class activation maps are pooled")] = 2
    normalise: Annotated[bool, Field(description="divide each class's map by its length first")] = False


@dataclass(frozen=True, kw_only=True)
class SimKD(Ramp):
    """The last features through a projector, which the teacher's classifier then reads (Chen et al. 2022)."""

    hard: ClassVar[float | None] = 0.0

    name: Literal["simkd"] = "simkd"
    weight: Weight = 1.0
    factor: Annotated[int, Field(ge=1, description="the projector's width is the teacher's channels over this")] = 2


FEATURE_CHANNELS: dict[str, type] = {
    "cwd": CWD,
    "pkd": PKD,
    "pad": PAD,
    "ickd": ICKD,
    "srrl": SRRL,
    "cat_kd": CATKD,
    "simkd": SimKD,
}
