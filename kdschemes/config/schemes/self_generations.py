"""Options of the self-distillation methods that teach from an earlier run. Nothing here imports torch."""

from __future__ import annotations

from kdschemes.config.schemes.base import Method

SELF_GENERATIONS: dict[str, type[Method]] = {}
