"""Options of the offline methods. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from kdschemes.config.schemes.base import Method


@dataclass(frozen=True, kw_only=True)
class OfflineKD(Method):
    """One or several frozen teachers teach a student (Hinton et al. 2015)."""

    uses_teacher: ClassVar[bool] = True
    losses: ClassVar[dict[str, Any]] = {"response": {"name": "kd"}}

    name: Literal["offline"] = "offline"
    method: Literal["kd"] = "kd"
    alpha: Annotated[
        float, Field(ge=0, le=1, description="weight of the soft term; 1 with losses published beside a full hard term")
    ] = 0.9
    hard: Annotated[
        float | None, Field(ge=0, description="weight of the hard term; null: 1 - alpha (or as the loss was published)")
    ] = None


OFFLINE: dict[str, type[Method]] = {"kd": OfflineKD}
