"""A process that trains packs, one after the other; started and given orders by `kdschemes study run`.

An order is a line of JSON on the standard input: `runs` (configurations), `log` (where its output goes) and `cores`.
For each run a line of JSON on the standard output reports the outcome, and one more the end of the order. When the
input ends, because nothing is left to do or because the parent process has died, the process stops as if by SIGTERM:
it saves its runs first.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdschemes.config import Config
from kdschemes.config.load import build_config
from kdschemes.errors import UserError
from kdschemes.printable import printable
from kdschemes.training.signals import StopSignal

RESET_PEAK = "5"
"""Value that makes Linux reset the peak memory of a process."""


def main() -> int:
    """Carry out orders until the input ends; return the process's exit code."""
    messages = os.fdopen(os.dup(1), "w", buffering=1)
    orders: queue.SimpleQueue[Mapping[str, Any] | None] = queue.SimpleQueue()
    with StopSignal() as stop:
        threading.Thread(target=_read_orders, args=(orders,), daemon=True).start()
        while (order := orders.get()) is not None:
            _redirect(Path(order["log"]))
            _use_cores(order["cores"])
            outcomes = _train([build_config(tree) for tree in order["runs"]], stop)
            sys.stdout.flush()
            with contextlib.suppress(BrokenPipeError):
                for line in (*outcomes, {"over": True}):
                    print(json.dumps(line), file=messages)
    return 0


def _read_orders(orders: queue.SimpleQueue[Mapping[str, Any] | None]) -> None:
    for line in sys.stdin:
        orders.put(json.loads(line))
    orders.put(None)
    os.kill(os.getpid(), signal.SIGTERM)


def _redirect(log: Path) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def _use_cores(cores: list[int]) -> None:
    """Run on these cores only; this includes threads that libraries have already started."""
    for thread in Path("/proc/self/task").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(int(thread.name), cores)


def _train(configs: list[Config], stop: StopSignal) -> list[dict[str, str]]:
    """Train runs and return their outcomes; SystemExit if the process was asked to stop, after the checkpoints."""
    from kdschemes.training.train import Failed, train_together

    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text(RESET_PEAK)
    try:
        outcomes = train_together(configs, stop)
    except UserError as error:
        print(printable(f"error: {error}"), flush=True)
        raise SystemExit(2) from None
    return [
        {"run": outcome.folder.name} | ({"failed": str(outcome.error)} if isinstance(outcome, Failed) else {})
        for outcome in outcomes
    ]


if __name__ == "__main__":
    sys.exit(main())
