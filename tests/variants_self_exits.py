"""What the options of the self-distillation methods open, to be tested like their defaults."""

from __future__ import annotations

from variants import SELF

VARIANTS: dict[str, list[str]] = {
    "self-byot-linear": [*SELF, "scheme.exit_head=linear", "losses.feature=hint"],
    "self-byot-at-rkd": [*SELF, "losses.feature=at", "losses.relation=rkd"],
    "self-byot-ema": [*SELF, "train.ema=0.9"],
}
REFUSED: dict[tuple[str, str], str] = {}
"""Pairs of method and architecture that a builder refuses, with a part of what it says."""
