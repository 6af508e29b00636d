"""Saving and loading of checkpoints."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from kdschemes import __version__
from kdschemes.distributed.fsdp import full_state, load_full_optimizer_state, load_full_state
from kdschemes.errors import UserError, first_line
from kdschemes.storage.atomic import atomic_write, verify_guards

CHECKPOINT = "checkpoint.pt"


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state of tensors and plain data atomically."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    atomic_write(path, buffer.getvalue())


def load_state(path: Path) -> dict[str, Any]:
    """Load what `save_state` wrote onto the CPU, without executing code from the file.

    Raises:
        UserError: the file is missing, damaged or not a checkpoint.
        FolderLost: the whole folder is missing, or another process's.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        verify_guards(path)
        raise UserError(
            f"{path} was deleted or renamed: restore it, or delete its folder to start this run over"
        ) from None
    except Exception as error:
        raise UserError(f"{path} is damaged ({first_line(error)[:80]}): delete it to start this run over") from None
    if not isinstance(state, dict):
        raise UserError(f"{path} is not a checkpoint: delete it to start this run over")
    return state


def save_checkpoint(
    path: Path, scheme: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator, state: Mapping[str, Any]
) -> None:
    """Write the checkpoint of a run: weights, optimizer, gradient scaler, and the run's `state`.

    All processes must call this; the main process writes.
    """
    weights, momenta = full_state(scheme.state_dict()), full_state(optimizer.state_dict())
    if accelerator.is_main_process:
        scaler = accelerator.scaler
        checkpoint = {
            "version": __version__,
            "processes": accelerator.num_processes,
            "scheme": weights,
            "optimizer": momenta,
            "scaler": scaler.state_dict() if scaler is not None else None,
        }
        save_state(path, checkpoint | dict(state))


def load_checkpoint(
    path: Path,
    scheme: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    restore: Callable[[Mapping[str, Any]], None],
) -> None:
    """Load what `save_checkpoint` wrote; `restore` takes the run's state.

    Raises:
        UserError: the file is damaged, or belongs to another run.
    """
    saved = load_state(path)
    try:
        load_full_state(scheme, saved["scheme"])
        load_full_optimizer_state(optimizer, saved["optimizer"])
        if accelerator.scaler is not None and saved["scaler"] is not None:
            accelerator.scaler.load_state_dict(saved["scaler"])
        restore(saved)
    except (KeyError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0][:120]
        raise UserError(f"{path} does not fit this run ({reason}): delete it or choose another output_dir") from None
