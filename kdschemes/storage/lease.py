"""One writer per folder, on a file system shared by machines: a lease that a dead holder loses to another process.

The file `lease-N` with the highest N names the holder of a folder on its first line, followed by a heartbeat counter
that the holder increments every few seconds. Taking over creates `lease-(N+1)`, which only one process can do, and then
removes `lease-N`. A process wrongly presumed dead checks for its own file before putting any file in place, finds it
gone, and writes nothing more. Clocks of different machines are never compared. Other names (`lease-1~`) do not count.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import psutil
from pydantic import Field, TypeAdapter

from kdschemes.config.parse import parse_json
from kdschemes.distributed import slurm
from kdschemes.errors import UserError

LEASE_SECONDS = 60.0
"""How long a holder on another machine must be silent before its folder is taken over."""

BEATS = 6
"""Heartbeats in that time."""

MALFORMED_SECONDS = 2.0
"""The same for a lease without a holder and a heartbeat: its writer died, or is still writing it and then gives way."""

SAME_START = 5.0
"""Tolerance in seconds between two readings of one process's start time."""


class FolderLost(UserError):
    """The run's folder or its lease is another process's or gone: this process must not write anything more."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The process that holds a folder.

    `place` identifies the machine's boot and PID namespace; `started` is in seconds since 1970 by that machine's clock.
    `job` (`ARRAYID_TASKID` in an array) and `restart` are SLURM's, None and 0 outside a job.
    """

    token: str
    host: str
    place: str
    pid: Annotated[int, Field(strict=True, gt=0, lt=1 << 31)]
    started: Annotated[float, Field(strict=True)]
    job: str | None
    restart: Annotated[int, Field(strict=True)]
    cluster: str | None

    def __str__(self) -> str:
        job = f", job {self.job}" if self.job is not None else ""
        return f"process {self.pid} on {self.host}{job}"

    @property
    def fresh(self) -> bool:
        """Whether it is known to be alive, which only processes on this machine are."""
        return self.place == _place() and _lives(self.pid, self.started)


HOLDER = TypeAdapter(Holder)


def holder(folder: Path) -> Holder | None:
    """Return the process that holds a folder, or held it when it died; None if there is none."""
    newest = _newest(folder)
    return None if newest is None else _read(folder / f"lease-{newest}")[0]


def leases(folder: Path) -> Iterator[tuple[int, Path]]:
    """Yield the leases in a folder with their numbers."""
    for path in folder.glob("lease-*"):
        if _NAME.fullmatch(path.name):
            yield int(path.name.removeprefix("lease-")), path


_NAME = re.compile(r"lease-[1-9][0-9]{0,8}")

_CONTENT = re.compile(rb"\{.*\}\n[0-9]{12}\n")


def this_process() -> Holder:
    """Return this process as the holder of a new lease."""
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

    `lost`: the folder or the lease is another process's or gone. `waited`: this process had to wait for another.
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
        """Acquire the folder; return False if `asked()` (whether this process shall stop) becomes true first.

        A folder is taken over if its holder is dead on this machine, is no longer run by SLURM or was restarted as this
        very job, or gave no sign of life for the lease's time. Otherwise this waits (`wait`) or raises. `say` is
        called immediately with what is waited for, and for how long.

        Raises:
            UserError: another process holds the folder.
            OSError: the folder cannot be written.
        """
        while not asked():
            newest = _newest(self.folder)
            number = 1
            if newest is not None:
                there = self.folder / f"lease-{newest}"
                found, over = self._why_over(there, asked, say)
                if over is None:
                    if not os.path.lexists(there):
                        continue
                    if not wait:
                        who = f" ({found})" if found is not None else ""
                        cure = "wait for it, or choose another seed or output_dir"
                        raise UserError(f"{self.folder} is in use by another process{who}: {cure}")
                    if not self.waited:
                        say(
                            f"waiting until {found or 'the process'} that is training in {self.folder} ends, or gives "
                            f"no sign of life for {self._seconds:.0f} s"
                        )
                        self.waited = True
                    time.sleep(min(1.0, self._seconds / BEATS))
                    continue
                say(f"taking over {self.folder} from {found or 'an unknown process'}: {over}")
                number = newest + 1
            if self._create(number):
                return True
        return False

    def verify(self) -> None:
        """Check that this process still holds the folder; called right before a file is put in place.

        Raises:
            FolderLost: it does not; `lost` is then true.
        """
        if self.lost or not self._is_mine():
            self.lost = True
            raise FolderLost(f"{self._why_lost()}: this process stops and writes nothing more there")

    def _why_lost(self) -> str:
        assert self._path is not None
        if not self.folder.is_dir():
            return f"{self.folder} was deleted or renamed"
        after = holder(self.folder)
        if after is not None:
            return f"{self.folder} was taken over by {after}"
        if os.path.lexists(self._path):
            return f"{self._path}, by which this process held the folder, was changed"
        return f"{self._path}, by which this process held the folder, was deleted or renamed"

    def release(self) -> None:
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
        for earlier, other in leases(self.folder):
            if earlier < number:
                with contextlib.suppress(IsADirectoryError, PermissionError):
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
            except (FileNotFoundError, NotADirectoryError):
                self.lost = True
                return
            except OSError:
                continue

    def _is_mine(self) -> bool:
        assert self._path is not None
        try:
            with self._path.open("rb") as file:
                return file.readline() == _line(self._me)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise UserError(f"{self._path} cannot be read: {error.strerror or error}") from None

    def _why_over(
        self, path: Path, asked: Callable[[], bool], say: Callable[[str], None]
    ) -> tuple[Holder | None, str | None]:
        """Return the holder and why its folder may be taken over; None if it is alive or has released the folder."""
        found, before = _read(path)
        if found is not None:
            here = found.place == self._me.place
            if here and not _lives(found.pid, found.started):
                return found, "it is dead"
            if (word := _scheduler_says(found, self._me)) is not None:
                return found, word
            if here:
                return found, None
        seconds = self._seconds
        if found is None and not _CONTENT.fullmatch(before):
            seconds = min(MALFORMED_SECONDS, seconds)
        if os.path.lexists(path):
            holds = f"is held by {found}" if found is not None else f"has a {path.name} that names no process"
            say(f"{self.folder} {holds}: waiting up to {seconds:.0f} s for a sign of life")
        waited = time.monotonic()
        while time.monotonic() - waited < seconds:
            if asked():
                return found, None
            time.sleep(min(1.0, seconds / BEATS / 2))
            if not os.path.lexists(path) or _read(path)[1] != before:
                return found, None
        return found, f"it gave no sign of life for {seconds:.0f} s"


def _newest(folder: Path) -> int | None:
    return max((number for number, _ in leases(folder)), default=None)


def _line(held_by: Holder) -> bytes:
    return (json.dumps(asdict(held_by)) + "\n").encode()


def _count(beats: int) -> bytes:
    return f"{beats:012d}\n".encode()


def _read(path: Path) -> tuple[Holder | None, bytes]:
    """Return the holder (None if the file names none) and the content of a lease file."""
    try:
        content = path.read_bytes() if path.is_file() else b""
        return HOLDER.validate_python(parse_json(content.partition(b"\n")[0])), content
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
    """Return why a holder no longer runs according to SLURM; None if it does, or if nothing is known."""
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
