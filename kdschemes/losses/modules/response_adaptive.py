"""Losses between logits whose temperature, weights or targets adapt to samples or to training."""

from __future__ import annotations

from typing import Any

from kdschemes.losses.modules.base import Loss

RESPONSE_ADAPTIVE: dict[type, type[Loss[Any]]] = {}
