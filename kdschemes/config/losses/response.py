"""Options of the losses between logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from kdschemes.config.losses.base import Ramp, Temperature

WeightBesideAlpha = Annotated[float, Field(ge=0, description="weight of the term, beside the scheme's alpha")]
Standardise = Annotated[
    bool, Field(description="divide centred logits by their deviation over classes first (Sun et al. 2024)")
]


@dataclass(frozen=True, kw_only=True)
class KD(Ramp):
    """Kullback-Leibler divergence of softened outputs, times T^2 (Hinton et al. 2015)."""

    name: Literal["kd"] = "kd"
    weight: WeightBesideAlpha = 1.0
    temperature: Temperature = 4.0
    standardise: Standardise = False


@dataclass(frozen=True, kw_only=True)
class LogitMSE(Ramp):
    """Squared distance of centred logits: the high-temperature limit of KD."""

    name: Literal["logit_mse"] = "logit_mse"
    weight: WeightBesideAlpha = 1.0
    standardise: Standardise = False


RESPONSE_SOFT: dict[str, type] = {"kd": KD, "logit_mse": LogitMSE}
