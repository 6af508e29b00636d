"""Options of the losses between feature maps: their values, their attention, their activation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kdschemes.config.losses.base import StageChoice, Stages, Weight, WeightOfPair


@dataclass(frozen=True, kw_only=True)
class Hint(Stages):
    """Mean squared difference of features after a learned regressor (Romero et al. 2015, FitNets)."""

    name: Literal["hint"] = "hint"
    weight: Weight = 100.0
    stages: StageChoice = "middle"


@dataclass(frozen=True, kw_only=True)
class AT(Stages):
    """Squared difference of normalised spatial attention maps (Zagoruyko & Komodakis 2017)."""

    name: Literal["at"] = "at"
    weight: WeightOfPair = 1000.0


FEATURE_MAPS: dict[str, type] = {"hint": Hint, "at": AT}
