"""Worker processes as seen by who gives them orders."""

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
"""What workers said, and None for one that has ended."""


class Worker:
    """A process `python -m kdschemes.study.local.worker` with its input and output; `log` is for what goes wrong early.

    It is in a session of its own, so that a key pressed at the terminal reaches its parent alone, which tells it. When
    the parent dies its input ends, and it saves and ends.
    """

    def __init__(self, messages: Messages, log: Path, environment: Mapping[str, str]) -> None:
        with log.open("ab") as file:
            self._process = subprocess.Popen(
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
        """Give an order; a worker that is dead says so itself."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it lives."""
        self._process.send_signal(number)

    def close(self) -> None:
        """Let it end: at once if it has nothing to do, else when it has saved what it trains."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def wait(self) -> None:
        """Wait for its end."""
        self._process.wait()

    @property
    def ending(self) -> str:
        """How it ended, in words; to be asked when it has."""
        code = self._process.wait()
        return f"ended with exit code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"

    def _listen(self, messages: Messages) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as said:
            for line in said:
                with contextlib.suppress(ValueError):  # it was killed while it wrote
                    messages.put((self, json.loads(line)))
        self._process.wait()
        messages.put((self, None))
