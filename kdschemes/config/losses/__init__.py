"""Options of every distillation loss, and the tables of losses. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from kdschemes.config.losses.base import NoLoss, Ramp, Stages
from kdschemes.config.losses.feature import FEATURE
from kdschemes.config.losses.relation import RELATION
from kdschemes.config.losses.response import RESPONSE

__all__ = ["FEATURE", "KINDS", "RELATION", "RESPONSE", "Losses", "NoLoss", "Ramp", "Stages", "loss_named"]

KINDS: dict[str, dict[str, type]] = {"response": RESPONSE, "feature": FEATURE, "relation": RELATION}
"""The tables by kind of knowledge; each loss is in exactly one."""


def loss_named(name: str) -> tuple[str, type] | None:
    """Return the kind and the options class of a loss."""
    return next(((kind, table[name]) for kind, table in KINDS.items() if name in table and name != "none"), None)


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The losses on a scheme's edges: at most one of each kind, plus any number in `extra`."""

    response: Any = field(default_factory=NoLoss)
    feature: Any = field(default_factory=NoLoss)
    relation: Any = field(default_factory=NoLoss)
    extra: Annotated[
        list[Any], Field(description="additional losses, as [{name: at}, {name: sp, weight: 10}]; each at most once")
    ] = field(default_factory=list)

    def chosen(self) -> Iterator[tuple[str, Any]]:
        """Yield the kind and the options of every loss that is not `none`."""
        for kind in KINDS:
            if not isinstance(getattr(self, kind), NoLoss):
                yield kind, getattr(self, kind)
        for options in self.extra:
            found = loss_named(options.name)
            assert found is not None, f"{options.name} is in no table"
            yield found[0], options
