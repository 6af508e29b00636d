"""Losses between channels, distributions of features, and features read by the teacher's classifier."""

from __future__ import annotations

from typing import Any

from kdschemes.losses.modules.base import Loss

FEATURE_CHANNELS: dict[type, type[Loss[Any]]] = {}
