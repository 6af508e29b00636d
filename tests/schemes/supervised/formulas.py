"""What the totals of the supervised methods share."""

from __future__ import annotations

from tests.losses import oracles
from tests.schemes.formulas import Seen


def smoothed(seen: Seen, *outputs: str) -> float:
    """The cross-entropy of each output with the smoothed labels, summed."""
    scheme, logits = seen.config.scheme, [seen.logits(name) for name in outputs]
    return oracles.supervised(logits, seen.labels, smoothing=scheme.label_smoothing, over=scheme.label_smoothing_over)
