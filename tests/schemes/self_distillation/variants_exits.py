"""What the options of the self-distillation methods open, to be tested like their defaults."""

from __future__ import annotations

from tests.schemes.variants import SELF, base

VARIANTS: dict[str, list[str]] = {
    "self-byot-linear": [*SELF, "scheme.exit_head=linear", "losses.feature=hint"],
    "self-byot-at-rkd": [*SELF, "losses.feature=at", "losses.relation=rkd"],
    "self-byot-ema": [*SELF, "train.ema=0.9"],
    "self-byot-authors": [*SELF, "scheme.variant=authors"],
    "self-byot-luanyunteng": [*SELF, "scheme.variant=luanyunteng", "scheme.beta=0.001", "scheme.exit_head=linear"],
    "self-multi_exit-warming": [*base("self", "multi_exit"), "scheme.confidence=0.1", "losses.relation=rkd"],
    "self-sad-both-ways": [*base("self", "sad"), "scheme.variant=original", "scheme.start=0", "scheme.detach=false"],
    "self-frskd-detached": [*base("self", "frskd"), "scheme.detach=true", "scheme.width=1", "scheme.depth=1"],
}
REFUSED: dict[tuple[str, str], str] = {}
"""Pairs of method and architecture that a builder refuses, with a part of what it says."""
