"""Processes, device and arithmetic of a run; and the signals that ask it to stop."""

from __future__ import annotations

import os
import signal
import types

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed

from kdschemes.config import Config
from kdschemes.distributed import any_process
from kdschemes.errors import UserError
from kdschemes.seeding import make_deterministic

PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def start_processes(config: Config) -> Accelerator:
    """Join the processes that were launched together and choose device, precision and threads.

    Raises:
        UserError: the launcher was asked for more processes than came up, a GPU was asked for where there is none, or
            a precision that the device lacks.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch sees no GPU here (use device=auto or device=cpu)")
    cpu = config.device == "cpu" or not torch.cuda.is_available()
    if cpu and config.precision == "fp16":
        raise UserError("precision=fp16 needs a GPU (on CPU use precision=bf16 or fp32)")
    # `accelerate launch --num_processes N` without --multi_gpu sets a port for N processes and starts one.
    if "MASTER_PORT" in os.environ and "LOCAL_RANK" not in os.environ:
        raise UserError(
            "several processes were asked for and one came up: launch with "
            "`accelerate launch --multi_gpu --num_processes N run.py ...` (on CPU too)"
        )
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=PRECISIONS[config.precision],
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )
    wanted = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != wanted:
        raise UserError(
            f"{wanted} processes were launched and {accelerator.num_processes} joined: launch with "
            "`accelerate launch --multi_gpu --num_processes N run.py ...` (on CPU too)"
        )
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(config.train.threads or max(1, _cores() // here))
    if config.train.deterministic:
        make_deterministic()
    set_seed(config.seed)
    return accelerator


def _cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class StopSignal:
    """Remembers SIGTERM, SIGUSR2 or SIGINT until the loop asks; the second SIGINT stops at once."""

    SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}
        self._agreement: dist.ProcessGroup | None = None

    def __enter__(self) -> StopSignal:
        for number in self.SIGNALS:
            self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _remember(self, number: int, frame: types.FrameType | None) -> None:
        if number == signal.SIGINT and self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)

    def agreed(self) -> bool:
        """Return whether any process was asked to stop: the same answer on all, without waiting for a GPU."""
        if not (dist.is_available() and dist.is_initialized()):
            return self.received is not None
        if self._agreement is None and dist.get_backend() != "gloo":
            group = dist.new_group(backend="gloo")
            assert isinstance(group, dist.ProcessGroup)
            self._agreement = group
        return any_process(self.received is not None, torch.device("cpu"), self._agreement)
