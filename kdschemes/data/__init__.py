"""Data sets: reading them, splitting them, and the views that networks see."""

from __future__ import annotations

from kdschemes.data.loader import DataModule, open_data

__all__ = ["DataModule", "open_data"]
