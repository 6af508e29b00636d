"""Options of the losses between logits whose temperature, weights or targets adapt to samples or to training."""

from __future__ import annotations

RESPONSE_ADAPTIVE: dict[str, type] = {}
