"""Data sets: reading, splitting and augmented views."""

from __future__ import annotations

from kdschemes.data.loader import DataModule, open_data

__all__ = ["DataModule", "open_data"]
