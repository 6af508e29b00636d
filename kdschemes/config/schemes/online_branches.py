"""Options of the online methods whose peers are branches or meet in one more head. Nothing here imports torch."""

from __future__ import annotations

from kdschemes.config.schemes.base import Method

ONLINE_BRANCHES: dict[str, type[Method]] = {}
