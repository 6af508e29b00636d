"""What the options of the self-distillation methods that teach from an earlier run open, to be tested like their defaults."""

from __future__ import annotations

VARIANTS: dict[str, list[str]] = {}
REFUSED: dict[tuple[str, str], str] = {}
"""Pairs of method and architecture that a builder refuses, with a part of what it says."""
