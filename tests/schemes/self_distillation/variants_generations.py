"""What the options of the methods of self-distillation from an earlier run open, to be tested like their defaults."""

from __future__ import annotations

from tests.schemes.variants import base

VARIANTS: dict[str, list[str]] = {
    "self-ban-first-hint": [*base("self", "ban"), "scheme.generations=1", "losses.feature=hint"],
}
REFUSED: dict[tuple[str, str], str] = {}
"""Pairs of method and architecture that a builder refuses, with a part of what it says."""
