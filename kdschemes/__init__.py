"""kdschemes: offline, online and self-distillation on one core of knowledge-distillation losses.

The public names are imported when they are first used, so that `import kdschemes` does not import torch.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

# Threads that spin while they wait take the cores from those that work; OpenMP reads this when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

_PLACES = {
    "Config": "kdschemes.config",
    "Results": "kdschemes.api",
    "Distiller": "kdschemes.schemes.distiller",
    "distill": "kdschemes.schemes.distiller",
    "load_config": "kdschemes.config.load",
    "load_model": "kdschemes.models",
    "register_dataset": "kdschemes.data.datasets",
    "register_loss": "kdschemes.losses.build",
    "register_method": "kdschemes.schemes",
    "register_model": "kdschemes.models",
    "train": "kdschemes.api",
}
"""The module of each public name."""

__all__ = [*_PLACES, "losses"]


def __getattr__(name: str) -> Any:
    if name == "losses":
        return import_module("kdschemes.losses")
    if name not in _PLACES:
        raise AttributeError(f"module 'kdschemes' has no attribute '{name}'")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
