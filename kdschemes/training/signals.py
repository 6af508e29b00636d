"""What asks a run to stop, recorded until the training loop checks. Importing this does not import torch."""

from __future__ import annotations

import os
import signal
import threading
import time
import types
from pathlib import Path
from typing import TYPE_CHECKING

from kdschemes.storage.atomic import atomic_write

if TYPE_CHECKING:
    import torch.distributed as dist

STOP_NOTICE = "KDSCHEMES_STOPPED"
"""Environment variable with the path of the file in which a stopped run reports the signal and its steps to its job."""


LAUNCHED = "TORCHELASTIC_RUN_ID"
"""Environment variable of the processes of `accelerate launch --multi_gpu` and `torchrun`, children of the launcher."""

AGAIN = 1.0
"""Seconds after which a second SIGINT is the user's; a terminal's first one comes twice, from the launcher too."""


class StopSignal:
    """Records SIGTERM, SIGUSR2, SIGINT, or SIGHUP until the loop checks; a second SIGINT stops immediately.

    Outside the main thread, where no handler can be set, none is recorded. SIGHUP stays ignored if it is (`nohup`). The
    end of the launcher that started this process counts as SIGTERM. `steps` counts the optimizer steps that this
    process has taken, over all runs that it trained.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._received_at = 0.0
        self._launcher = os.getppid() if LAUNCHED in os.environ else None
        self.steps = 0
        self._before: dict[signal.Signals, object] = {}
        self._agreement: dist.ProcessGroup | None = None

    def __enter__(self) -> StopSignal:
        main = threading.current_thread() is threading.main_thread()  # only there can handlers be set
        for number in self.SIGNALS if main else ():
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _remember(self, number: int, frame: types.FrameType | None) -> None:
        if number == signal.SIGINT and self.received is not None and time.monotonic() - self._received_at > AGAIN:
            raise KeyboardInterrupt
        if self.received is None:
            self._received_at = time.monotonic()
        self.received = signal.Signals(number)

    @property
    def reason(self) -> str | None:
        """What asks this process to stop, in words; None if nothing does."""
        if self.received is not None:
            return self.received.name
        orphaned = self._launcher is not None and os.getppid() != self._launcher
        return "the end of its launcher" if orphaned else None

    def requested_on_any_rank(self, also: bool = False) -> bool:
        """Return whether any process has a `reason` or passes `also`: the same on all, without a GPU sync."""
        import torch
        import torch.distributed as dist

        from kdschemes.distributed.collectives import any_process

        asked = also or self.reason is not None
        if not (dist.is_available() and dist.is_initialized()):
            return asked
        if self._agreement is None and dist.get_backend() != "gloo":
            group = dist.new_group(backend="gloo")
            assert isinstance(group, dist.ProcessGroup)
            self._agreement = group
        return any_process(asked, torch.device("cpu"), self._agreement)

    def notify_job(self, name: str) -> None:
        """Report to the job that started this process, if it asked for it, that `name` stopped the process."""
        if path := os.environ.get(STOP_NOTICE):
            atomic_write(Path(path), f"{'-'.join(name.split())} {self.steps}\n".encode())

    @property
    def exit_code(self) -> int:
        """128 + the signal's number; SIGTERM's if this process received none."""
        return 128 + (self.received if self.received is not None else signal.SIGTERM)
