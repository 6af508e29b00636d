"""Options of the self-distillation methods of one plain network. Nothing here imports torch."""

from __future__ import annotations

from kdschemes.config.schemes.base import Method

SELF_SINGLE: dict[str, type[Method]] = {}
