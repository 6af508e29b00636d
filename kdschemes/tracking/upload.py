"""The upload of runs that W&B's client wrote offline: one folder at a time, in chronological order, once each."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from kdschemes.errors import UserError
from kdschemes.storage import lease
from kdschemes.tracking.wandb_run import ID_FILE
from kdschemes.tracking.wandb_server import check_answer, check_login

RETRIES = "5"
"""The client's attempts per request before the folder counts as failed: about a minute."""

SIGN_OF_LIFE = 300.0
"""Maximum age in seconds of the lease of a run that is being trained on another machine."""

CUT_OFF = "ends with an incomplete record"
"""The client's message for a file whose writer was killed, after uploading all of its content."""

LEFT_OUT = "is being trained, left out"


@dataclass(frozen=True)
class Part:
    """A folder that the client wrote offline: a run, or the part of it that one process trained.

    `run` is the run's id in W&B, `trained_in` its folder, if it is here. `is_last`: its run has no later part.
    """

    folder: Path
    run: str
    trained_in: Path | None
    is_last: bool

    @property
    def marker(self) -> Path:
        """The file that the client creates when the folder is uploaded."""
        return self.folder / f"run-{self.run}.wandb.synced"

    @property
    def is_being_written(self) -> bool:
        """Whether a process is writing this part: the last one of a run whose folder is leased."""
        if self.trained_in is None or not self.is_last:
            return False
        held_by = lease.holder(self.trained_in)
        if held_by is None or held_by.fresh:
            return held_by is not None
        if held_by.place == lease.this_process().place:
            return False
        signs = [path.stat().st_mtime for _, path in lease.leases(self.trained_in)]
        return time.time() - max(signs, default=0.0) < SIGN_OF_LIFE

    def line(self, what: str) -> str:
        """Return the line that reports what happened to it."""
        return f"{self.folder}: {what}{f' ({self.trained_in.name})' if self.trained_in is not None else ''}"


def sync(folder: Path, *, dry_run: bool, say: Callable[[str], None]) -> str:
    """Upload what is not yet uploaded of the runs in `folder`; return a summary, with `dry_run` of what would be done.

    The folders `wandb/offline-run-*` in it are passed to `wandb sync` one by one, oldest first. A run that was
    interrupted has several. If one fails, the later ones of its run wait for it; all are tried again next time. The
    last part of a run that is being trained is left out. `say` is called with a line for each folder.

    Raises:
        UserError: there is no such folder; not logged in; no server responds; a folder could not be uploaded.
    """
    parts = _find_parts(folder)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: give the one that contains the runs' folders")
    if not parts:
        raise UserError(f"{folder} holds no wandb/offline-run-*: give the folder that contains the runs' folders")
    todo = [part for part in parts if not part.marker.exists()]
    if dry_run:
        for part in todo:
            say(part.line(LEFT_OUT if part.is_being_written else "would be uploaded"))
        return f"{len(todo)} of {_folders(len(parts))} to upload; nothing was sent"
    if not todo:
        return f"everything is uploaded: {_folders(len(parts))}"
    try:
        with FileLock(parts[0].folder.parent / ".kdschemes-sync.lock", timeout=0):
            return _upload_all(todo, len(parts), say)
    except Timeout:
        raise UserError(f"another kdschemes wandb sync is uploading {folder}: wait for it") from None
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}") from None


def _find_parts(folder: Path) -> list[Part]:
    """Return the client's offline folders next to the runs' folders in `folder`, oldest first."""
    files = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda file: file.parent.name)
    runs = [file.stem.removeprefix("run-") for file in files]
    trained_in = {file.read_text().strip(): file.parent for file in folder.glob(f"*/{ID_FILE}*")}
    return [
        Part(file.parent, run, trained_in.get(run), is_last=run not in runs[number:])
        for number, (file, run) in enumerate(zip(files, runs, strict=True), start=1)
    ]


def _upload_all(todo: Sequence[Part], count: int, say: Callable[[str], None]) -> str:
    url = check_login("kdschemes wandb sync")
    failed: dict[str, Part] = {}
    waiting = live = sent = 0
    for part in todo:
        if part.run in failed:
            waiting += 1
            say(part.line(f"waits for {failed[part.run].folder.name} of the same run"))
        elif part.is_being_written:
            live += 1
            say(part.line(LEFT_OUT))
        elif (reason := _upload(part)) is None:
            sent += 1
            say(part.line("uploaded"))
        else:
            failed[part.run] = part
            say(part.line(f"failed ({reason})"))
            check_answer(url, f"{_folders(sent)} uploaded, then ")
    counts = [f"{sent} uploaded", f"{count - len(todo)} before"]
    counts += [f"{live} being trained"] * bool(live) + [f"{waiting} waiting for a failed one"] * bool(waiting)
    if failed:
        raise UserError(f"{_folders(len(failed))} failed ({', '.join(counts)}); the same command tries again")
    return f"{_folders(count)}: {', '.join(counts)}"


def _upload(part: Part) -> str | None:
    """Pass a folder to the client; return None if it was uploaded, else the reason in one line.

    For a killed run, W&B gets the content of its file; the client would resend it each time, so it is marked.
    """
    environment = {"WANDB_X_GRAPHQL_RETRY_MAX": RETRIES, "WANDB_ERROR_REPORTING": "false"} | os.environ
    environment.pop("WANDB_MODE", None)
    environment.pop("WANDB_SILENT", None)
    environment["WANDB_DIR"] = str(part.folder.parents[1])  # for the client's own logs
    command = [sys.executable, "-m", "wandb", "sync", str(part.folder)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment)
    if part.marker.exists():
        return None
    lines = [line.removeprefix("wandb:").strip() for line in (done.stdout + done.stderr).splitlines()]
    errors = [line.removeprefix("ERROR").strip() for line in lines if line.startswith(("ERROR", "Error"))]
    if any(CUT_OFF in line for line in errors):
        part.marker.touch()
        return None
    return errors[-1] if errors else f"wandb sync ended with exit code {done.returncode} and left no mark"


def _folders(count: int) -> str:
    return "1 folder" if count == 1 else f"{count} folders"
