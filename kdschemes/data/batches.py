"""Evaluation batches of several processes: distributed evenly, stopped between any two."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from kdschemes.core.types import Batch
from kdschemes.distributed.collectives import share, world_size


def evenly(batches: Iterable[Batch], samples: int, batch_size: int) -> Iterator[Batch]:
    """Yield this process's batches of a split with `samples` samples, the same number in every process.

    Shares differ by at most one sample, so a process may have one batch fewer than others: its last one is then split.
    """
    wanted = -(-share(samples, world_size(), 0)[1] // batch_size)
    held: Batch | None = None
    for batch in batches:
        if held is not None:
            wanted -= 1
            yield held
        held = batch
    assert held is not None, f"a process has none of {samples} samples"
    if wanted == 1:
        yield held
    else:
        half = len(held) // 2
        yield _rows(held, 0, half)
        yield _rows(held, half, len(held))


def checked(batches: Iterable[Batch], samples: int, batch_size: int, check: Callable[[], None]) -> Iterator[Batch]:
    """Yield this process's batches of a split with `samples` samples, after calling `check` for each.

    `check` is called equally often in every process, although a process may have one batch fewer than others.
    """
    remaining = iter(batches)
    for _ in range(-(-share(samples, world_size(), 0)[1] // batch_size)):
        check()
        if (batch := next(remaining, None)) is not None:
            yield batch


def _rows(batch: Batch, start: int, end: int) -> Batch:
    images, labels, index = (values[start:end] for values in (batch.images, batch.labels, batch.index))
    return replace(batch, images=images, labels=labels, index=index)
