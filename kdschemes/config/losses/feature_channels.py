"""Options of the losses between channels, distributions of features, and features read by the teacher's classifier."""

from __future__ import annotations

FEATURE_CHANNELS: dict[str, type] = {}
