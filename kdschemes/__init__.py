"""kdschemes: offline, online and self-distillation on one core of knowledge-distillation losses."""

import os
from typing import Any

# Threads that spin while they wait take the cores from those that work; OpenMP reads this when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

_HOMES = {"Distiller": "kdschemes.schemes.distiller", "distill": "kdschemes.schemes.distiller"}
"""The module of each public name; it is imported when the name is used, so that `import kdschemes` is quick."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kdschemes' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
