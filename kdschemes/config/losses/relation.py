"""Options of the losses between relations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from kdschemes.config.losses.base import StageChoice, Stages, Weight


@dataclass(frozen=True, kw_only=True)
class RKD(Stages):
    """Distances and angles between the samples of a batch (Park et al. 2019)."""

    name: Literal["rkd"] = "rkd"
    weight: Weight = 1.0
    distance: Annotated[float, Field(ge=0, description="weight of the distance part within the term")] = 25.0
    angle: Annotated[float, Field(ge=0, description="weight of the angle part within the term")] = 50.0
    stages: StageChoice = "last"


@dataclass(frozen=True, kw_only=True)
class FSP(Stages):
    """Flow between consecutive stages: squared difference of FSP matrices (Yim et al. 2017)."""

    name: Literal["fsp"] = "fsp"
    weight: Annotated[float, Field(ge=0, description="weight of the term, per pair of consecutive stages")] = 50.0


RELATION: dict[str, type] = {"rkd": RKD, "fsp": FSP}
