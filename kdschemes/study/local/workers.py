"""Worker processes, from the side of the process that gives them orders."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Messages = queue.SimpleQueue[tuple["Worker", dict[str, Any] | None]]
"""Messages of workers; None from one that has ended."""


class Worker:
    """A process `python -m kdschemes.study.local.worker` with its input and output; `log` is for early errors.

    It has its own session, so that Ctrl-C at the terminal reaches only its parent, which notifies it. When the parent
    dies, its input ends, and it saves and exits.
    """

    def __init__(self, messages: Messages, log: Path, environment: Mapping[str, str], kind: object) -> None:
        self.kind = kind
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "kdschemes.study.local.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env={**os.environ, **environment},
                start_new_session=True,
                text=True,
            )
        threading.Thread(target=self._listen, args=(messages,), daemon=True).start()

    def give(self, order: Mapping[str, Any]) -> None:
        """Give an order; a dead worker is noticed by its end-of-output message."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()

    def close(self) -> None:
        """Let it exit: at once if it is idle, else when it has saved its runs."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    @property
    def ending(self) -> str:
        """How it ended, in words; only valid after it has."""
        code = self.process.wait()
        return f"ended with exit code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"

    def _listen(self, messages: Messages) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as said:
            for line in said:
                with contextlib.suppress(ValueError):  # it was killed while writing
                    messages.put((self, json.loads(line)))
        self.process.wait()
        messages.put((self, None))
