"""Losses between two outputs: they pick entries, hold projections and call the pure functions."""

from __future__ import annotations

from typing import Any

from kdschemes.losses.modules.base import Gather, LogitLoss, Loss, Side, embedding
from kdschemes.losses.modules.feature_channels import FEATURE_CHANNELS
from kdschemes.losses.modules.feature_maps import FEATURE_MAPS
from kdschemes.losses.modules.relation import RELATION
from kdschemes.losses.modules.response import RESPONSE_SOFT
from kdschemes.losses.modules.response_adaptive import RESPONSE_ADAPTIVE
from kdschemes.task import Task

__all__ = ["MODULES", "Gather", "LogitLoss", "Loss", "Side", "build_loss", "embedding"]

MODULES: dict[type, type[Loss[Any]]] = {
    **RESPONSE_SOFT,
    **RESPONSE_ADAPTIVE,
    **FEATURE_MAPS,
    **FEATURE_CHANNELS,
    **RELATION,
}
"""The module of every loss in the tables of `kdschemes.config.losses`."""


def build_loss(options: Any, *, student: Side, teacher: Side, task: Task) -> Loss[Any]:
    """Return the loss that `options` names, its projections shaped for the two networks.

    Raises:
        UserError: a stage that is not there, a loss that cannot be defined for the two.
    """
    return MODULES[type(options)](options, student=student, teacher=teacher, task=task)
