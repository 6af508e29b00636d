"""Worker processes that load data: they leave signals to their parent and end with it; if one dies, it is one line."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from kdschemes.errors import UserError

SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP}
"""Signals to which the parent responds, although process groups and SLURM's job steps get them as a whole."""


def load(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield from a loader; its `worker_init_fn` must be `obey_parent`.

    The workers start with `SIGNALS` blocked, so none is lost or kills them. Torch's handler of SIGCHLD is removed: it
    raises wherever the main thread happens to be. Without it, a missing worker is noticed here, within 5 s.

    Raises:
        UserError: a worker died.
    """
    if loader.num_workers == 0:
        yield from loader
        return
    handler, mask = signal.getsignal(signal.SIGCHLD), signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        batches = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, handler)
    try:
        yield from batches
    except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
        lost = not isinstance(error, RuntimeError) or str(error).startswith("DataLoader worker")
        if not lost or str(error).startswith("Caught "):  # an error of the worker's own, which torch passes on
            raise
        raise UserError(
            "a data-loading worker died, often because memory (or /dev/shm) ran out: use a lower "
            "data.num_workers or more memory; the same command resumes from the last checkpoint"
        ) from None


def obey_parent(worker: int) -> None:
    """Exit at SIGTERM only if it is the parent's: torch and multiprocessing end workers by it."""
    if sys.platform != "linux":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        return

    def listen() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
