"""How far a run is, as its checkpoint keeps it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdschemes.distributed.collectives import gather_rows, rank, world_size
from kdschemes.storage.checkpoint import Best, Checkpoint

NEVER = torch.iinfo(torch.int64).max
COMMON = (
    *("step", "window_steps", "metrics_offset", "metrics_sha256", "best", "previous_best", "seconds", "wall", "images"),
    "validation_due",
)
"""The attributes that are the same on all processes."""


class State:
    """The checkpointed state of a run other than weights and optimizer. Times are in seconds.

    A window is the steps since the last log line; its sums have one column for the total and one per term. `first_bad`
    is the first step at which each of them was not finite. `metrics_offset` and `metrics_sha256` are the length and the
    checksum of metrics.jsonl as of the last checkpoint, `previous_best` is the best epoch as of the one before it.
    `validation_due`: the epoch's steps are taken, but its validation has not ended. The sums of the epoch, which are
    only shown, are not checkpointed.
    """

    def __init__(self, columns: int, device: torch.device) -> None:
        self.step = self.window_steps = self.metrics_offset = self.images = 0
        self.seconds = self.wall = 0.0
        self.metrics_sha256 = ""
        self.validation_due = False
        self.best: Best | None = None
        self.previous_best: Best | None = None
        self.window_sums = torch.zeros(columns, dtype=torch.float64, device=device)
        self.epoch_sums, self.epoch_steps = torch.zeros_like(self.window_sums), 0
        self.first_bad = torch.full((columns,), NEVER, dtype=torch.int64, device=device)

    def advance(self, losses: Tensor, images: int) -> None:
        """Record an optimizer step on `images` images, given the losses: the total, then each term."""
        self.step += 1
        self.images += images
        self.window_sums += losses
        self.window_steps += 1
        self.epoch_sums += losses
        self.epoch_steps += 1
        bad = torch.full_like(self.first_bad, self.step)
        self.first_bad = torch.where(torch.isfinite(losses), self.first_bad, self.first_bad.minimum(bad))

    def start_window(self) -> None:
        self.window_sums.zero_()
        self.window_steps = 0

    def end_epoch(self) -> tuple[Tensor, int]:
        """Return the sums of the losses over the epoch and their number of steps, and start the next epoch's."""
        ended = self.epoch_sums, self.epoch_steps
        self.epoch_sums, self.epoch_steps = torch.zeros_like(self.epoch_sums), 0
        return ended

    def saved(self) -> dict[str, Any]:
        """Return the state to checkpoint. All processes must call this: their windows are gathered."""
        return {name: getattr(self, name) for name in COMMON} | {"window_sums": gather_rows(self.window_sums).cpu()}

    def restore(self, saved: Checkpoint, total_steps: int) -> None:
        """Restore what `saved` returned; if the number of processes has changed, each takes the mean of the windows.

        Raises:
            ValueError: the run is shorter, or has other terms.
        """
        windows = saved["window_sums"]
        if saved["step"] > total_steps:
            raise ValueError(f"it is of step {saved['step']}, the run has {total_steps}")
        if windows.dtype != torch.float64 or windows.ndim != 2 or windows.shape[1] != len(self.window_sums):
            raise ValueError(f"its losses are {list(windows.shape)}, the run has {len(self.window_sums)}")
        window = windows[rank()] if len(windows) == world_size() else windows.mean(0)
        self.window_sums = window.to(self.window_sums.device)
        for name in COMMON:
            setattr(self, name, saved[name])  # type: ignore[literal-required]
