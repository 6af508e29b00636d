"""Which runs may share batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdschemes.config import Config

if TYPE_CHECKING:
    pass

SHARED = ("batch_size", "accumulation", "drop_last", "eval_batch_size", "channels_last", "deterministic", "threads")
"""Keys of `train` that must be equal in runs that go in lockstep."""


def common(config: Config) -> str:
    """Return what must be equal in runs that go in lockstep, beside the companions of their batches."""
    train = tuple(getattr(config.train, key) for key in SHARED)
    return repr((config.data, config.seed, config.precision, config.device, train))


def alone(config: Config) -> bool:
    """Return whether a run cannot go beside others: its weights are split or offloaded, or it has a gradient scaler."""
    placed = config.scheme.uses_teacher and config.teacher.placement != "device"
    return config.train.shard or placed or config.precision == "fp16"
