"""Saving and loading of checkpoints."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kdschemes.errors import UserError, first_line
from kdschemes.storage.atomic import atomic_write

CHECKPOINT = "checkpoint.pt"


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state of tensors and plain data atomically."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    atomic_write(path, buffer.getvalue())


def load_state(path: Path) -> dict[str, Any]:
    """Load what `save_state` wrote onto the CPU, without executing code from the file.

    Raises:
        UserError: the file is damaged or not a checkpoint.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} is damaged ({first_line(error)[:80]}): delete it to start this run over") from None
    if not isinstance(state, dict):
        raise UserError(f"{path} is not a checkpoint: delete it to start this run over")
    return state
