"""Options of every loss between two outputs, and the tables that name them. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field


@dataclass(frozen=True, kw_only=True)
class NoLoss:
    """No term of this kind."""

    name: Literal["none"] = "none"


@dataclass(frozen=True, kw_only=True)
class Ramp:
    """How a term's weight runs over training."""

    schedule: Annotated[
        Literal["constant", "linear", "sigmoid", "cosine"],
        Field(description="weight over training: constant, or a ramp from 0 (cosine: down to 0)"),
    ] = "constant"
    ramp_epochs: Annotated[float, Field(gt=0, description="length of the ramp in epochs")] = 20.0


@dataclass(frozen=True, kw_only=True)
class KD(Ramp):
    """Kullback-Leibler divergence of softened outputs, times T^2 (Hinton et al. 2015)."""

    name: Literal["kd"] = "kd"
    weight: Annotated[float, Field(ge=0, description="weight of the term, beside the scheme's alpha")] = 1.0
    temperature: Annotated[float, Field(gt=0, description="temperature T of both softmaxes")] = 4.0


@dataclass(frozen=True, kw_only=True)
class LogitMSE(Ramp):
    """Squared distance of centred logits: the high-temperature limit of KD."""

    name: Literal["logit_mse"] = "logit_mse"
    weight: Annotated[float, Field(ge=0, description="weight of the term, beside the scheme's alpha")] = 1.0


@dataclass(frozen=True, kw_only=True)
class Stages(Ramp):
    """Which stages of the student meet which of the teacher."""

    stages: Annotated[
        Literal["all", "last", "middle"] | list[str],
        Field(description="stage pairs: all, last, middle, or a list of 'student_stage:teacher_stage'"),
    ] = "all"


@dataclass(frozen=True, kw_only=True)
class Hint(Stages):
    """Mean squared difference of features after a learned regressor (Romero et al. 2015, FitNets)."""

    name: Literal["hint"] = "hint"
    weight: Annotated[float, Field(ge=0, description="weight of the term")] = 100.0
    stages: Annotated[
        Literal["all", "last", "middle"] | list[str],
        Field(description="stage pairs: all, last, middle, or a list of 'student_stage:teacher_stage'"),
    ] = "middle"


@dataclass(frozen=True, kw_only=True)
class AT(Stages):
    """Squared difference of normalised spatial attention maps (Zagoruyko & Komodakis 2017)."""

    name: Literal["at"] = "at"
    weight: Annotated[float, Field(ge=0, description="weight of the term, per stage pair")] = 1000.0


@dataclass(frozen=True, kw_only=True)
class RKD(Stages):
    """Distances and angles between the samples of a batch (Park et al. 2019)."""

    name: Literal["rkd"] = "rkd"
    weight: Annotated[float, Field(ge=0, description="weight of the term")] = 1.0
    distance: Annotated[float, Field(ge=0, description="weight of the distance part within the term")] = 25.0
    angle: Annotated[float, Field(ge=0, description="weight of the angle part within the term")] = 50.0
    stages: Annotated[
        Literal["all", "last", "middle"] | list[str],
        Field(description="stage pairs: all, last, middle, or a list of 'student_stage:teacher_stage'"),
    ] = "last"


@dataclass(frozen=True, kw_only=True)
class FSP(Stages):
    """Flow between consecutive stages: squared difference of FSP matrices (Yim et al. 2017)."""

    name: Literal["fsp"] = "fsp"
    weight: Annotated[float, Field(ge=0, description="weight of the term, per pair of consecutive stages")] = 50.0


RESPONSE: dict[str, type] = {"none": NoLoss, "kd": KD, "logit_mse": LogitMSE}
FEATURE: dict[str, type] = {"none": NoLoss, "hint": Hint, "at": AT}
RELATION: dict[str, type] = {"none": NoLoss, "rkd": RKD, "fsp": FSP}


@dataclass(frozen=True, kw_only=True)
class Losses:
    """What the edges of a scheme carry: any of the three kinds, alone or together."""

    response: KD | LogitMSE | NoLoss = field(default_factory=NoLoss)
    feature: Hint | AT | NoLoss = field(default_factory=NoLoss)
    relation: RKD | FSP | NoLoss = field(default_factory=NoLoss)
