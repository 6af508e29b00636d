"""Options of the self-distillation methods whose network has exits. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from kdschemes.config.schemes.base import ExitOptions, Method


@dataclass(frozen=True, kw_only=True)
class SelfBYOT(ExitOptions):
    """The deepest exit teaches each shallower one (Zhang et al. 2019)."""

    losses: ClassVar[dict[str, Any]] = {
        "response": {"name": "kd", "temperature": 3.0},
        "feature": {"name": "hint", "weight": 0.03},
    }

    name: Literal["self"] = "self"
    method: Literal["byot"] = "byot"
    alpha: Annotated[
        float, Field(ge=0, le=1, description="weight of the soft term of an exit; its hard term has 1 - alpha")
    ] = 0.5


SELF_EXITS: dict[str, type[Method]] = {"byot": SelfBYOT}
