"""How an evaluation batch is split evenly over processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from kdschemes.core.types import Batch
from kdschemes.distributed.collectives import share, world_size


def evenly(batches: Iterable[Batch], samples: int, batch_size: int) -> Iterator[Batch]:
    """Yield this process's batches of a split of `samples`, as many as every other process yields.

    Shares differ by one sample, so that a process may have a batch less than others: its last one is then cut in two.
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


def _rows(batch: Batch, start: int, end: int) -> Batch:
    images, labels, index = (values[start:end] for values in (batch.images, batch.labels, batch.index))
    return replace(batch, images=images, labels=labels, index=index)
