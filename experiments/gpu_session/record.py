"""A part of the session: the items it consists of, what it has found so far, and how long it may take."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdschemes.storage.atomic import atomic_write

REPOSITORY = Path(__file__).resolve().parents[2]

STOPPED = 75
"""Exit code of a part that has items left."""

CPU = "CPU"
"""The device of a machine without a GPU."""

Outcome = dict[str, Any]
"""What an item has found. `ok` says whether it is as it should be; without `ok` a signal has stopped it.

`not_run` says what this machine could not show, `error` why there is no answer: both are tried again, the first by a
machine with a GPU after one without, the second by every call.
"""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a part is started with: where it writes, CIFAR-100, the time (seconds since 1970) when it is stopped.

    A rehearsal has the same items on tiny networks and images.
    """

    out: Path
    data: Path
    until: float
    rehearse: bool

    @property
    def seconds_left(self) -> float:
        return self.until - time.time()

    @property
    def words(self) -> list[str]:
        """The arguments of a part's program."""
        words = ["--out", str(self.out), "--data", str(self.data), "--until", str(self.until)]
        return [*words, "--rehearse"] if self.rehearse else words


Item = Callable[[Task], Outcome]


@dataclass
class Record:
    """A part's findings by item: a JSON file, rewritten whenever there is a new one."""

    path: Path
    planned: tuple[str, ...] = ()
    machine: Mapping[str, Any] = field(default_factory=dict)
    items: dict[str, Outcome] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Record:
        """Return what a part has written so far; a record of nothing if it has not begun."""
        if not path.exists():
            return cls(path)
        tree = json.loads(path.read_text())
        return cls(path, tuple(tree["planned"]), tree["machine"], tree["items"])

    def write(self, name: str, outcome: Outcome) -> None:
        """Add what an item has found."""
        self.items[name] = outcome
        tree = {"machine": self.machine, "planned": self.planned, "items": self.items}
        atomic_write(self.path, (json.dumps(tree, indent=1) + "\n").encode())

    def is_finished(self, name: str, *, gpu: bool) -> bool:
        """Return whether an item need not be run again."""
        found = self.items.get(name, {})
        for_gpu = gpu and "not_run" in found and found["device"] == CPU
        return "ok" in found and "error" not in found and not for_gpu

    def left(self, *, gpu: bool = False) -> list[str]:
        """Return the items that are not finished."""
        return [name for name in self.planned if not self.is_finished(name, gpu=gpu)]


def run_part(part: str, items: Callable[[Task], Mapping[str, Item]]) -> int:
    """Run the items of a part that are not finished until its time is over; return the process's exit code."""
    task = _task()
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    signal.setitimer(signal.ITIMER_REAL, max(task.seconds_left, 1e-3))
    import torch

    gpu = torch.cuda.is_available()
    by_name = items(task)
    record = Record.read(task.out / f"{part}.json")
    record.planned, record.machine = tuple(by_name), machine()
    for name in record.left(gpu=gpu):
        if task.seconds_left <= 0:
            break
        _say(f"{part}: {name} ...")
        if gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        started = time.monotonic()
        try:
            outcome = by_name[name](task)
        except Exception as error:  # what fails on this machine is a finding; the next item may work
            traceback.print_exc(file=sys.stdout)
            outcome = {"ok": False, "error": f"{type(error).__name__}: {error}"[:500]}
        took = {"device": record.machine["device"], "seconds": round(time.monotonic() - started, 2)}
        record.write(name, outcome | took)
        _say(f"{part}: {name}: {_in_words(outcome)}")
        if "ok" not in outcome:
            break
    return STOPPED if record.left() else 0


def machine() -> dict[str, Any]:
    """Return what the numbers depend on: processor, GPU, versions, commit."""
    import accelerate
    import timm
    import torch
    import torchvision

    libraries = {library.__name__: library.__version__ for library in (torch, torchvision, timm, accelerate)}
    gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if gpu else CPU,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **libraries,
        "cuda": torch.version.cuda if gpu else None,
        "cudnn": torch.backends.cudnn.version() if gpu else None,  # type: ignore[no-untyped-call]
        "commit": _commit(),
    }


def _commit() -> str | None:
    """Return the commit of this checkout; None without git, or in a copy without its history."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return found.stdout.strip() or None


def _task() -> Task:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--until", type=float, required=True)
    parser.add_argument("--rehearse", action="store_true")
    return Task(**vars(parser.parse_args()))


def _in_words(outcome: Outcome) -> str:
    if "error" in outcome:
        return str(outcome["error"])
    verdict = {True: "ok", False: "NOT as it should be"}.get(outcome.get("ok"), "not finished")  # type: ignore[arg-type]
    return f"{verdict} ({outcome['not_run']})" if "not_run" in outcome else verdict


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
