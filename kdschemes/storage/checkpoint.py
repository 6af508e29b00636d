"""Saving and loading of checkpoints, and the check that a file is whole before it is used."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Required

import pydantic
import torch
from accelerate import Accelerator
from pydantic import ConfigDict, Field
from torch import Tensor, nn
from typing_extensions import TypedDict

from kdschemes import __version__
from kdschemes.checksums import file_checksum
from kdschemes.distributed.collectives import on_main_process
from kdschemes.distributed.fsdp import full_state, load_full_optimizer_state, load_full_state
from kdschemes.errors import UserError, first_line
from kdschemes.storage.archive import archive_fault
from kdschemes.storage.atomic import atomic_write, verify_guards

CHECKPOINT = "checkpoint.pt"

PREVIOUS = "checkpoint-previous.pt"
"""The checkpoint before the last, for a run whose last one gets damaged."""

METRICS = "metrics.jsonl"

BEST_FILE = r"^best-epoch\d{4,}\.pt$"

Count = Annotated[int, Field(ge=0)]


class Best(TypedDict):
    """The best epoch so far, and the file with its weights."""

    epoch: Annotated[int, Field(ge=1)]
    top1: float
    nll: float
    file: Annotated[str, Field(pattern=BEST_FILE)]
    sha256: str


class Checkpoint(TypedDict, total=False):
    """The contents of a checkpoint."""

    __pydantic_config__ = ConfigDict(strict=True, arbitrary_types_allowed=True, extra="forbid")  # type: ignore[misc]

    version: Required[str]
    processes: Required[Annotated[int, Field(ge=1)]]
    scheme: Required[dict[str, Tensor]]
    optimizer: Required[dict[str, Any]]
    scaler: Required[dict[str, Any] | None]
    data: Required[str]
    step: Required[Count]
    window_steps: Required[Count]
    window_sums: Required[Tensor]
    metrics_offset: Required[Count]
    metrics_sha256: Required[str]
    images: Required[Count]
    seconds: Required[float]
    wall: Required[float]
    best: Required[Best | None]
    previous_best: Required[Best | None]
    validation_due: Required[bool]


SCHEMA = pydantic.TypeAdapter(Checkpoint)


def save_state(path: Path, state: Mapping[str, Any]) -> str:
    """Write a state of tensors and plain data atomically; return the file's SHA-256."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    atomic_write(path, buffer.getvalue())
    return hashlib.sha256(buffer.getbuffer()).hexdigest()


def load_state(path: Path) -> dict[str, Any]:
    """Load what `save_state` wrote onto the CPU, without executing code from the file.

    Raises:
        UserError: the file is missing, damaged, or not what `save_state` writes.
        FolderLost: the whole folder is missing, or another process's.
    """
    if not path.exists():
        verify_guards(path)
        raise _lost(path, "it was deleted or renamed")
    if fault := archive_fault(path):
        raise _lost(path, fault)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise _lost(path, first_line(error)) from None
    if not isinstance(state, dict):
        raise _lost(path, "it holds no dictionary")
    return state


def keep_previous(folder: Path) -> None:
    """Keep the last checkpoint of a run, before another is written, where the file system has links.

    Raises:
        FolderLost: another process has taken over the folder.
    """
    verify_guards(folder)
    with contextlib.suppress(OSError):
        (folder / PREVIOUS).unlink(missing_ok=True)
        os.link(folder / CHECKPOINT, folder / PREVIOUS)


def read_checkpoint(path: Path) -> Checkpoint:
    """Load a checkpoint onto the CPU.

    Raises:
        UserError: the file is damaged, or something in it is missing or of the wrong type.
    """
    try:
        return SCHEMA.validate_python(load_state(path))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise _lost(path, f"{where}: {first['msg']}") from None


def recover(folder: Path) -> str | None:
    """Check a run's checkpoint and the files that belong to it; if one is damaged, put the previous one in place.

    Return a line that says so, None if the checkpoint is whole or there is none.

    Raises:
        UserError: neither checkpoint can be used.
    """
    if not (folder / CHECKPOINT).exists():
        return None
    try:
        _check_files(folder, read_checkpoint(folder / CHECKPOINT))
        return None
    except UserError as error:
        fault = error
    try:
        previous = read_checkpoint(folder / PREVIOUS)
        _check_files(folder, previous)
    except UserError:
        raise fault from None
    (folder / PREVIOUS).replace(folder / CHECKPOINT)
    reason = str(fault).partition(": ")[0]
    return f"{reason}: resuming from the checkpoint before it, of step {previous['step']}"


def _check_files(folder: Path, saved: Checkpoint) -> None:
    """Check the best epoch's weights and the lines of metrics.jsonl that a checkpoint belongs to."""
    if (best := saved["best"]) is not None:
        path = folder / best["file"]
        if not path.is_file():
            raise _lost(path, "it was deleted or renamed")
        if file_checksum(path) != best["sha256"]:
            raise _lost(path, "it does not match its checksum")
    path, length = folder / METRICS, saved["metrics_offset"]
    content = path.read_bytes() if path.is_file() else b""
    if len(content) < length:
        raise _lost(path, f"it has {len(content)} bytes, but the checkpoint recorded {length}")
    if hashlib.sha256(memoryview(content)[:length]).hexdigest() != saved["metrics_sha256"]:
        raise _lost(path, "its lines were changed since the checkpoint")


def _lost(path: Path, fault: str) -> UserError:
    """Return the error for a damaged file without which its run cannot be resumed."""
    what = {CHECKPOINT: "what was trained", METRICS: "the run's log"}.get(path.name, "weights of the run")
    cure = f"restore it from a copy, or delete {path.parent} to train the run again"
    return UserError(f"{path} is damaged ({' '.join(fault.split())[:120]}): {what} cannot be read; {cure}")


def save_checkpoint(
    path: Path, scheme: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator, state: Mapping[str, Any]
) -> None:
    """Write the checkpoint of a run: weights, optimizer, gradient scaler, and the run's `state`.

    All processes must call this; the main process writes.

    Raises:
        UserError: on all processes, if the file cannot be written.
    """
    scaler = accelerator.scaler
    checkpoint = {
        "version": __version__,
        "processes": accelerator.num_processes,
        "scheme": full_state(scheme.state_dict()),
        "optimizer": full_state(optimizer.state_dict()),
        "scaler": scaler.state_dict() if scaler is not None else None,
    }
    on_main_process(lambda: save_state(path, checkpoint | dict(state)))


def load_checkpoint(
    path: Path,
    scheme: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    restore: Callable[[Checkpoint], None],
) -> None:
    """Load what `save_checkpoint` wrote; `restore` takes the run's state.

    Raises:
        UserError: the file is damaged, or belongs to another run.
    """
    saved = read_checkpoint(path)
    try:
        load_full_state(scheme, saved["scheme"])
        load_full_optimizer_state(optimizer, saved["optimizer"])
        if accelerator.scaler is not None and saved["scaler"] is not None:
            accelerator.scaler.load_state_dict(saved["scaler"])
        restore(saved)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = first_line(error)[:120]
        raise UserError(f"{path} does not fit this run ({reason}): delete it or choose another output_dir") from None
