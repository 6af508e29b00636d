"""One writer a folder, on a file system that machines share: a lease that a later process takes over after proof.

The holder of a folder is the file `lease-N` in it with the highest N: who it is on the first line, then a count that
it raises every few seconds. Taking over creates `lease-(N+1)`, which succeeds for one process only, and then removes
`lease-N`. A process that was taken for dead and lives finds its own file gone before each file that it would put in
place, and writes nothing more. No clock of one machine is compared with another's.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from kdschemes.distributed import slurm
from kdschemes.errors import UserError

LEASE_SECONDS = 60.0
"""How long a holder on another machine must give no sign of life before its folder is taken over."""

BEATS = 6
"""Signs of life in that time."""

SAME_START = 5.0
"""Seconds by which the start of one process may be read differently at different times."""


class FolderLost(UserError):
    """Another process has taken the run's folder over: this one must write nothing more."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The process that holds a folder.

    `place` names the machine since its last start and the namespace of process numbers; `started` is in seconds since
    1970 by that machine's clock. `job` (`ARRAY_ELEMENT` in an array) and `restart` are SLURM's, None and 0
    outside a job.
    """

    token: str
    host: str
    place: str
    pid: int
    started: float
    job: str | None
    restart: int
    cluster: str | None

    def __str__(self) -> str:
        job = f", job {self.job}" if self.job is not None else ""
        return f"process {self.pid} on {self.host}{job}"

    @property
    def fresh(self) -> bool:
        """Whether it is known to live: true of processes on this machine only."""
        return self.place == _place() and _lives(self.pid, self.started)


def holder(folder: Path) -> Holder | None:
    """Return who holds a folder, or held it when it died; None if nobody does."""
    newest = _newest(folder)
    return None if newest is None else _read(folder / f"lease-{newest}")[0]


def this_process() -> Holder:
    """Return what this process would write into a lease."""
    return Holder(
        token=secrets.token_hex(8),
        host=os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        place=_place(),
        pid=os.getpid(),
        started=psutil.Process().create_time(),
        job=slurm.own_job(),
        restart=int(os.environ.get("SLURM_RESTART_COUNT") or 0),
        cluster=os.environ.get("SLURM_CLUSTER_NAME"),
    )


class Lease:
    """The right to write into a folder. `seconds`: see `LEASE_SECONDS`.

    `lost` tells that another process has taken it over, `waited` that this one had to wait for another.
    """

    def __init__(self, folder: Path, seconds: float | None = None) -> None:
        self.folder = folder
        self.lost = False
        self.waited = False
        self._seconds = LEASE_SECONDS if seconds is None else seconds
        self._me = this_process()
        self._path: Path | None = None
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self, *, wait: bool = False, say: Callable[[str], None] = print, asked: Callable[[], bool]) -> bool:
        """Take the folder; return False if `asked()` became true (this process is to stop) before that.

        A holder that is dead on this machine, that SLURM no longer runs or runs again as this very job, or that gave no
        sign of life for the lease's time, is taken over. Any other is waited for, or is an error.

        Raises:
            UserError: another process holds the folder.
            OSError: the folder cannot be written.
        """
        while not asked():
            newest = _newest(self.folder)
            number = 1
            if newest is not None:
                there = self.folder / f"lease-{newest}"
                found, over = self._why_over(there, asked)
                if over is None:
                    if not there.exists():
                        continue
                    if not wait:
                        who = f" ({found})" if found is not None else ""
                        cure = "wait for it, or choose another seed or output"
                        raise UserError(f"{self.folder} is in use by another process{who}: {cure}")
                    if not self.waited:
                        say(f"waiting for the process that is training in {self.folder}")
                        self.waited = True
                    time.sleep(min(1.0, self._seconds / BEATS))
                    continue
                say(f"taking over {self.folder} from {found or 'a process that left no name'}: {over}")
                number = newest + 1
            if self._create(number):
                return True
        return False

    def verify(self) -> None:
        """Make sure that the folder is still this process's; called right before a file is put in place.

        Raises:
            FolderLost: it is not; from now on `lost` is true.
        """
        if self.lost or not self._is_mine():
            self.lost = True
            after = holder(self.folder)
            by = f" by {after}" if after is not None else ""
            raise FolderLost(f"{self.folder} was taken over{by}: this process stops and writes nothing more there")

    def release(self) -> None:
        """Give the folder up."""
        self._done.set()
        if self._thread is not None:
            self._thread.join()
        if self._path is not None and self._is_mine():
            with contextlib.suppress(OSError):
                self._path.unlink()

    def _create(self, number: int) -> bool:
        path = self.folder / f"lease-{number}"
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        try:
            with os.fdopen(file, "wb") as opened:
                opened.write(_line(self._me) + _count(0))
                opened.flush()
                os.fsync(opened.fileno())
        except OSError:
            path.unlink(missing_ok=True)
            raise
        if _newest(self.folder) != number:
            path.unlink(missing_ok=True)
            return False
        for other in self.folder.glob("lease-*"):
            if _number(other) < number:
                other.unlink(missing_ok=True)
        self._path = path
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()
        return True

    def _beat(self) -> None:
        assert self._path is not None
        beats = 0
        while not self._done.wait(self._seconds / BEATS):
            beats += 1
            try:
                with self._path.open("r+b") as file:
                    if file.readline() != _line(self._me):
                        self.lost = True
                        return
                    file.seek(len(_line(self._me)))
                    file.write(_count(beats))
            except FileNotFoundError:
                self.lost = True
                return
            except OSError:
                continue

    def _is_mine(self) -> bool:
        assert self._path is not None
        try:
            with self._path.open("rb") as file:
                return file.readline() == _line(self._me)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise UserError(f"{self._path} cannot be read: {error.strerror or error}") from None

    def _why_over(self, path: Path, asked: Callable[[], bool]) -> tuple[Holder | None, str | None]:
        """Return the holder and the proof that it may be taken over, or None if it lives or has gone by itself."""
        found, before = _read(path)
        if found is not None:
            here = found.place == self._me.place
            if here and not _lives(found.pid, found.started):
                return found, "it is dead"
            if (word := _scheduler_says(found, self._me)) is not None:
                return found, word
            if here:
                return found, None
        waited = time.monotonic()
        while time.monotonic() - waited < self._seconds:
            if asked():
                return found, None
            time.sleep(min(1.0, self._seconds / BEATS / 2))
            if not path.exists() or _read(path)[1] != before:
                return found, None
        return found, f"it gave no sign of life for {self._seconds:.0f} s"


def _newest(folder: Path) -> int | None:
    return max(map(_number, folder.glob("lease-*")), default=None)


def _number(path: Path) -> int:
    number = path.name.removeprefix("lease-")
    return int(number) if number.isdecimal() else 0


def _line(held_by: Holder) -> bytes:
    return (json.dumps(asdict(held_by)) + "\n").encode()


def _count(beats: int) -> bytes:
    return f"{beats:012d}\n".encode()


def _read(path: Path) -> tuple[Holder | None, bytes]:
    """Return the holder, None where the file names none, and all that is in the file."""
    try:
        content = path.read_bytes()
        return Holder(**json.loads(content.partition(b"\n")[0])), content
    except FileNotFoundError:
        return None, b""
    except (ValueError, TypeError):
        return None, content


def _lives(pid: int, started: float) -> bool:
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < SAME_START and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


@functools.cache
def _place() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def _scheduler_says(held_by: Holder, me: Holder) -> str | None:
    """Return why SLURM no longer counts on a holder; None if it does, or if nothing is known."""
    if held_by.job is None or me.job is None or held_by.cluster != me.cluster:
        return None
    if held_by.job == me.job:
        return f"SLURM started job {me.job} again" if me.restart > held_by.restart else None
    try:
        jobs = slurm.known_jobs([held_by.job])
    except slurm.SlurmUnavailable:
        return None
    job = jobs.get(held_by.job)
    if job is None:
        return f"SLURM no longer knows its job {held_by.job}"
    if job.restarts > held_by.restart:
        return f"SLURM started its job {held_by.job} again"
    return f"its job {held_by.job} is {job.state}" if job.waits or job.over else None
