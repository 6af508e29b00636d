"""The totals of the self-distillation methods of one plain network, and other values of their options to try."""

from __future__ import annotations

from formulas import Formula

FORMULAS: dict[type, Formula] = {}
EXACT: dict[str, list[str]] = {}
