"""Options of the self-distillation methods that teach from an earlier run. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from kdschemes.config.schemes.base import Method

SoftWeight = Annotated[float, Field(ge=0, le=1, description="weight of the soft term")]
HardWeight = Annotated[
    float | None, Field(ge=0, description="weight of the hard term; null: 1 - alpha (or as the loss was published)")
]


@dataclass(frozen=True, kw_only=True)
class SelfBAN(Method):
    """Born again: each generation is taught by the one before, the first by a plain run (Furlanello et al. 2018)."""

    losses: ClassVar[dict[str, Any]] = {"response": {"name": "soft_ce", "temperature": 1.0}}

    name: Literal["self"] = "self"
    method: Literal["ban"] = "ban"
    generations: Annotated[
        int, Field(ge=1, description="generations after the plain one; each before the last is a run of its own")
    ] = 3
    alpha: SoftWeight = 1.0
    hard: HardWeight = None


@dataclass(frozen=True, kw_only=True)
class SelfTfKD(Method):
    """The same network, trained plainly before, teaches a fresh one (Yuan et al. 2020)."""

    losses: ClassVar[dict[str, Any]] = {"response": {"name": "kd", "temperature": 20.0, "reduction": "mean"}}

    name: Literal["self"] = "self"
    method: Literal["tfkd_self"] = "tfkd_self"
    alpha: SoftWeight = 0.95
    hard: HardWeight = None


SELF_GENERATIONS: dict[str, type[Method]] = {"ban": SelfBAN, "tfkd_self": SelfTfKD}
