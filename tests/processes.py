"""Real runs in processes of their own, forked from one that has imported torch already, so that each starts at once."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

from tests import REPOSITORY

PATIENCE = 300.0
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        *("kdschemes.training.train", "kdschemes.tracking.tables", "kdschemes.config.help", "kdschemes.tracking.plots"),
        *("sklearn.datasets", "torch._dynamo"),
    ]
)


@dataclass(frozen=True)
class Ended:
    """A process that is over: its exit code (negative: the signal that killed it) and what it printed."""

    code: int
    out: str
    err: str


class Started:
    """`run.py ARGUMENTS` in a folder, with more environment variables; `before` is called in the process first."""

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        before: Before | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(REPOSITORY))
            forkserver.ensure_running()
        folder.mkdir(parents=True, exist_ok=True)
        self._process = CONTEXT.Process(target=_main, args=(list(arguments), folder, before, dict(environment or {})))
        self._process.start()
        self._printed = [_printed(folder, kind, self.pid) for kind in ("out", "err")]

    @property
    def pid(self) -> int:
        """The number of the process."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.is_alive()

    @property
    def has_begun(self) -> bool:
        """Whether it has printed anything, which a run does when its folder is open."""
        return self._printed[0].exists() and self._printed[0].stat().st_size > 0

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def wait(self) -> Ended:
        """Wait for its end."""
        self._process.join(PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
            raise AssertionError(f"still running after {PATIENCE} s")
        assert self._process.exitcode is not None
        out, err = (path.read_text() if path.exists() else "" for path in self._printed)
        return Ended(self._process.exitcode, out, err)


def run(arguments: Sequence[str], folder: Path, before: Before | None = None) -> Ended:
    """Run `run.py ARGUMENTS` in a folder to its end."""
    return Started(arguments, folder, before).wait()


@dataclass(frozen=True)
class SignalAtFile:
    """Send the process a signal before it writes, renames or removes a whole file for the `count`-th time."""

    number: signal.Signals
    count: int
    events: tuple[str, ...] = ("open", "os.rename", "os.remove")

    def __call__(self) -> None:
        seen = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            if event in self.events and (event == "os.remove" or str(arguments[0]).endswith(".partial")):
                seen += 1
                if seen == self.count:
                    os.kill(os.getpid(), self.number)

        sys.addaudithook(hook)


@dataclass(frozen=True)
class LimitFiles:
    """Let no file grow beyond `size` bytes, as a full disk would."""

    size: int

    def __call__(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))


Before = SignalAtFile | LimitFiles


def _printed(folder: Path, kind: str, pid: int) -> Path:
    return folder.with_name(f"{folder.name}.{kind}{pid}")


def _main(arguments: list[str], folder: Path, before: Before | None, environment: dict[str, str]) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)  # for loading workers, as in a process that a user starts
    for number, kind in ((1, "out"), (2, "err")):
        file = os.open(_printed(folder, kind, os.getpid()), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    if before is not None:
        before()
    sys.path.insert(0, str(REPOSITORY))
    from run import main

    sys.exit(main(arguments))
