"""Options of every scheme and method, and their tables. Nothing here imports torch."""

from __future__ import annotations

from kdschemes.config.schemes.base import ExitOptions, Method
from kdschemes.config.schemes.offline import OFFLINE
from kdschemes.config.schemes.online import ONLINE
from kdschemes.config.schemes.self_distillation import SELF
from kdschemes.config.schemes.supervised import SUPERVISED

__all__ = ["SCHEMES", "ExitOptions", "Method"]

SCHEMES: dict[str, dict[str, type[Method]]] = {
    "supervised": SUPERVISED,
    "offline": OFFLINE,
    "online": ONLINE,
    "self": SELF,
}
"""Every scheme, its methods and their options; a scheme's first method is its default."""
