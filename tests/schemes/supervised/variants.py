"""What the options of the supervised methods open, to be tested like their defaults."""

from __future__ import annotations

from tests.schemes.variants import base

VARIANTS: dict[str, list[str]] = {
    "supervised-ce-ema": [*base("supervised", "ce"), "train.ema=0.9"],
}
REFUSED: dict[tuple[str, str], str] = {}
"""Pairs of method and architecture that a builder refuses, with a part of what it says."""
