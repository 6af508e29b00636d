"""Where a run is, beside its weights and its optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kdschemes.distributed.collectives import gather_rows, rank, world_size

NEVER = torch.iinfo(torch.int64).max

NUMBERS = ("step", "window_steps", "metrics_offset", "best", "seconds", "wall", "images")
"""What is the same on all processes."""


@dataclass
class State:
    """Where a run is, beside weights and optimizer: all of it is in the checkpoint. Times are in seconds."""

    step: int = 0
    window_sums: Tensor = field(default_factory=lambda: torch.zeros(0))
    window_steps: int = 0
    first_bad: Tensor = field(default_factory=lambda: torch.zeros(0))
    metrics_offset: int = 0
    best: dict[str, Any] | None = None
    seconds: float = 0.0
    wall: float = 0.0
    images: int = 0

    @classmethod
    def begin(cls, columns: int, device: torch.device) -> State:
        """Return the state before the first step, with windows of so many columns: the total and each term."""
        return cls(
            window_sums=torch.zeros(columns, dtype=torch.float64, device=device),
            first_bad=torch.full((columns,), NEVER, dtype=torch.int64, device=device),
        )

    def saved(self) -> dict[str, Any]:
        """Return what a checkpoint holds of it. All processes must call this: it has the windows of each."""
        return {name: getattr(self, name) for name in NUMBERS} | {"window_sums": gather_rows(self.window_sums).cpu()}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take what `saved` returned; where there were other processes, each takes the mean of their windows.

        Raises:
            KeyError: something is missing.
        """
        windows = saved["window_sums"]
        window = windows[rank()] if len(windows) == world_size() else windows.mean(0)
        self.window_sums = window.to(self.window_sums.device)
        for name in NUMBERS:
            setattr(self, name, saved[name])
