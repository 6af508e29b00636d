"""Real runs in processes of their own, forked from one that has imported torch already, so that each starts at once."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PATIENCE = 300.0
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["kdschemes.train", "kdschemes.results", "kdschemes.config.describe"])


@dataclass(frozen=True)
class Ended:
    """A process that is over: its exit code (negative: the signal that killed it) and what it printed."""

    code: int
    out: str
    err: str


class Started:
    """`run.py ARGUMENTS` in a folder; `before` (picklable, from this module) is called in the process first."""

    def __init__(self, arguments: Sequence[str], folder: Path, before: Before | None = None) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(REPOSITORY))
            forkserver.ensure_running()
        folder.mkdir(parents=True, exist_ok=True)
        self._process = CONTEXT.Process(target=_main, args=(list(arguments), folder, before))
        self._process.start()
        self._printed = [folder.with_name(f"{folder.name}.{kind}{self._process.pid}") for kind in ("out", "err")]

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    def signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def wait(self) -> Ended:
        self._process.join(PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
            raise AssertionError(f"still running after {PATIENCE} s")
        assert self._process.exitcode is not None
        out, err = (path.read_text() for path in self._printed)
        return Ended(self._process.exitcode, out, err)


def run(arguments: Sequence[str], folder: Path, before: Before | None = None) -> Ended:
    """Run `run.py ARGUMENTS` in a folder to its end."""
    return Started(arguments, folder, before).wait()


@dataclass(frozen=True)
class KillAtFile:
    """Kill the process before it writes, renames or removes a file for the `count`-th time."""

    count: int
    events: tuple[str, ...] = ("open", "os.rename", "os.remove")

    def __call__(self) -> None:
        seen = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            if event in self.events and (event != "open" or str(arguments[0]).endswith(".partial")):
                seen += 1
                if seen == self.count:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)


@dataclass(frozen=True)
class LimitFiles:
    """Let no file grow beyond `size` bytes, as a full disk would."""

    size: int

    def __call__(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))


Before = KillAtFile | LimitFiles


def _main(arguments: list[str], folder: Path, before: Before | None) -> None:
    os.chdir(folder)
    for number, kind in ((1, "out"), (2, "err")):
        path = folder.with_name(f"{folder.name}.{kind}{os.getpid()}")
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    if before is not None:
        before()
    sys.path.insert(0, str(REPOSITORY))
    from run import main

    sys.exit(main(arguments))
