"""One frozen network's cache: filled at the start of an epoch unless already stored, then read."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdschemes.core.types import Batch, Output
from kdschemes.data import DataModule
from kdschemes.distributed.collectives import rank, rows_of_all, world_size
from kdschemes.errors import ErrorOnMain, UserError
from kdschemes.teacher_cache.files import Writer, file_name, file_size, map_values
from kdschemes.teacher_cache.folder import check_space, claim
from kdschemes.teacher_cache.key import Key, folder_name, key_digest

CHUNK = 256
"""Batch size of the network when a cache is filled, regardless of the run's batch size."""

LOGITS, FEATURES = "logits", "features."

Alone = Callable[[Callable[[], Any]], Any]
"""Runs work on the main process only and returns its value on all; if it fails there, it fails on all."""


class TeacherCache:
    """The stored outputs of one frozen network on the training views.

    Args:
        root: folder of all caches; this cache is a subfolder named after its key.
        key: what the outputs depend on (`cache_key`).
        data: the training samples and their views.
        compute: the network's forward pass.
        precision: the run's precision, in which the network computes.
        wanted: what is stored, with the shape of one sample: `logits`, and `features.STAGE`.
        limit: maximum total size in bytes of all caches in `root`.
        rebuild: text of the `rebuild.yaml` from which the network can be rebuilt.
    """

    def __init__(
        self,
        root: Path,
        key: Key,
        data: DataModule,
        compute: Callable[[Batch], Output],
        *,
        precision: str,
        wanted: Mapping[str, tuple[int, ...]],
        limit: float,
        rebuild: str,
    ) -> None:
        self.root, self.key, self.data, self.compute = root, key, data, compute
        self.precision, self.wanted, self.limit, self._rebuild = precision, dict(wanted), limit, rebuild
        self.folder = root / folder_name(key)
        self.samples = data.sizes["train"]
        self.announced = False
        self._positions = data.positions["train"]
        self._epoch: int | None = None
        self._values: dict[str, np.ndarray] = {}

    def fits(self, other: object) -> bool:
        return isinstance(other, TeacherCache) and self.folder == other.folder and self.key == other.key

    def absent(self, epochs: range) -> dict[str, int]:
        """Return for each stored tensor how many of these epochs have no file yet."""
        there = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()
        found = (
            {what: sum(file_name(epoch, what) in there for epoch in epochs) for what in self.wanted} if there else {}
        )
        return {what: len(epochs) - found.get(what, 0) for what in self.wanted}

    def size(self, what: str) -> int:
        return file_size(self._shape(what))

    def predict(self, batch: Batch) -> Output:
        """Return the stored output for a training batch of the open epoch, in float32 on the batch's device."""
        assert batch.epoch == self._epoch, f"epoch {batch.epoch} was requested, but epoch {self._epoch} is open"
        index = batch.index.cpu()
        rows = torch.searchsorted(self._positions, index)
        assert torch.equal(self._positions[rows], index), "a sample that is not trained on"
        device, numbers = batch.images.device, rows.numpy()
        found = {what: torch.from_numpy(values[numbers]).to(device).float() for what, values in self._values.items()}
        logits = found.pop(LOGITS)
        return Output(logits, {what.removeprefix(FEATURES): values for what, values in found.items()})

    def open_epoch(self, epoch: int, before_chunk: Callable[[], None], alone: Alone) -> None:
        """Map the files of an epoch, after writing the missing ones. All processes must call this.

        `before_chunk` is called on all processes before each chunk; if it raises, the partial files are removed.

        Raises:
            UserError: the folder or a file is damaged or belongs to another cache, the disk or the limit is too small,
                or an output is not finite in float16.
        """
        if epoch == self._epoch and self._values.keys() == self.wanted.keys():
            return
        missing = alone(lambda: self._check(epoch))
        if missing:
            self._fill(epoch, missing, before_chunk, alone)
        self._values = {what: self._map(epoch, what, check=False) for what in self.wanted}
        self._epoch = epoch

    def check_folder(self) -> None:
        """Check that the folder, if it exists, belongs to this cache.

        Raises:
            UserError: it belongs to another cache, or is damaged.
        """
        if self.folder.is_dir():
            claim(self.folder, self.key, self._rebuild)

    def chunks(self) -> list[Tensor]:
        """Return the positions in chunks of one forward pass each, in the order of a file's rows."""
        return [self._positions[start : start + CHUNK] for start in range(0, self.samples, CHUNK)]

    def computed(self, batch: Batch, wanted: Iterable[str]) -> dict[str, Tensor]:
        """Return the values to store for a training batch."""
        with arithmetic(self.precision, batch.images.device):
            output = self.compute(batch)
        found = {LOGITS: output.logits} | {f"{FEATURES}{name}": values for name, values in output.features.items()}
        return {what: found[what].to(torch.float16).contiguous() for what in wanted}

    def facts(self, epoch: int) -> dict[str, str]:
        """Return the metadata that the files of an epoch must have."""
        return {"key": key_digest(self.key), "epoch": str(epoch + 1)}

    def _shape(self, what: str) -> tuple[int, ...]:
        return (self.samples, *self.wanted[what])

    def _map(self, epoch: int, what: str, *, check: bool) -> np.ndarray:
        path = self.folder / file_name(epoch, what)
        return map_values(path, what, self._shape(what), self.facts(epoch), check=check)

    def _check(self, epoch: int) -> list[str]:
        """Check the stored files of an epoch, and the space for the missing ones; return what is missing."""
        claim(self.folder, self.key, self._rebuild)
        missing = [what for what in self.wanted if not (self.folder / file_name(epoch, what)).exists()]
        for what in self.wanted.keys() - set(missing):
            self._map(epoch, what, check=True)
        check_space(self.root, sum(map(self.size, missing)), self.limit)
        return missing

    def _fill(self, epoch: int, missing: Sequence[str], before_chunk: Callable[[], None], alone: Alone) -> None:
        """Compute all chunks, distributed round-robin over the processes; the main process writes.

        In the last round, processes without a chunk repeat the last one, because a sharded network needs all processes.
        """
        chunks, me, world = self.chunks(), rank(), world_size()
        rounds = -(-len(chunks) // world)
        mine = [chunks[min(number * world + me, len(chunks) - 1)] for number in range(rounds)]
        writers: dict[str, Writer] = {}

        def begin() -> None:
            facts = self.facts(epoch) | maker(self.data.device)
            for what in missing:
                writers[what] = Writer(self.folder / file_name(epoch, what), what, self._shape(what), facts)

        def write(rows: Mapping[str, Tensor]) -> None:
            for what, values in rows.items():
                writers[what].write(values.cpu().numpy())

        def finish() -> None:
            for what, writer in writers.items():
                writer.finish()
                self._map(epoch, what, check=True)

        try:
            alone(begin)
            for number, batch in enumerate(self.data.seen_in(epoch, mine)):
                before_chunk()
                extra = number * world + me >= len(chunks)
                own = self.computed(batch, missing)
                rows = {what: rows_of_all(values[:0] if extra else values) for what, values in own.items()}
                self._check_finite(rows)
                alone(partial(write, rows))
            alone(finish)
        finally:
            for writer in writers.values():
                writer.abandon()

    def _check_finite(self, rows: Mapping[str, Tensor]) -> None:
        for what, values in rows.items():
            if not bool(values.isfinite().all()):
                error = UserError if rank() == 0 else ErrorOnMain
                raise error(
                    f"the {what} of the teacher {self.key['teacher']['name']} are not finite in float16 (largest value "
                    "65504), the format of a cache: set teacher.cache=none"
                )


def maker(device: torch.device) -> dict[str, str]:
    """Return the metadata of this environment, on which the last bits of an output may depend."""
    if device.type == "cuda":
        processor = torch.cuda.get_device_name(device)
    else:
        processor = f"{_cpu()} {torch.backends.cpu.get_cpu_capability()}"
    return {"torch": torch.__version__, "processor": processor, "threads": str(torch.get_num_threads())}


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def arithmetic(precision: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return the autocast context of a run with this precision, the same as Accelerate's."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)
