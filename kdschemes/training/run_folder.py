"""The folder of a run: one writer, one configuration, a marker if it was interrupted."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from kdschemes.config import Config
from kdschemes.config.naming import NOT_HASHED, dump_yaml, flatten, to_tree
from kdschemes.errors import UserError
from kdschemes.printable import printable
from kdschemes.storage.atomic import atomic_write, guarded
from kdschemes.storage.lease import Lease
from kdschemes.training.signals import StopSignal

INTERRUPTED = "interrupted"


class RunFolder:
    """The folder of one run. Entering the context creates the folder and acquires its lease.

    With `wait`, wait for another holder until `stop` has received a signal.

    Raises:
        UserError: another process holds the folder, or it cannot be written.
        SystemExit: a stop signal was received while waiting.
    """

    def __init__(self, path: Path, stop: StopSignal, *, wait: bool = False) -> None:
        self.path = path
        self._wait = wait
        self._stop = stop
        self._lease = Lease(path)
        self._entered = contextlib.ExitStack()

    @property
    def lost(self) -> bool:
        return self._lease.lost

    def verify(self) -> None:
        """Raise `FolderLost` unless this process still holds the folder."""
        self._lease.verify()

    def __enter__(self) -> RunFolder:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            taken = self._lease.acquire(
                wait=self._wait,
                say=lambda text: print(printable(text), flush=True),
                asked=lambda: self._stop.received is not None,
            )
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror or error}") from None
        if not taken:
            print(printable(f"stopped before it started; the same command resumes: {self.path}"), flush=True)
            self._stop.notify_job("waiting" if self._lease.waited else "starting")
            raise SystemExit(self._stop.exit_code)
        self._entered.callback(self._lease.release)
        self._entered.enter_context(guarded(self.path, self._lease.verify))
        for leftover in self.path.rglob("*.partial"):
            leftover.unlink(missing_ok=True)
        return self

    def __exit__(self, *exception: object) -> None:
        self._entered.close()


def claim_folder(folder: Path, config: Config) -> None:
    """Write `config.yaml` into the folder of a new run.

    Raises:
        UserError: the folder belongs to another configuration.
    """
    check_same_config(folder, to_tree(config), NOT_HASHED)
    if not (folder / "config.yaml").exists():
        atomic_write(folder / "config.yaml", dump_yaml(config).encode())


def remove_leftovers(folder: Path, best: Mapping[str, Any] | None) -> None:
    """Remove what is newer than the checkpoint: weights of former best epochs, the marker of an interruption."""
    (folder / INTERRUPTED).unlink(missing_ok=True)
    for leftover in folder.glob("best-epoch*.pt"):
        if best is None or leftover.name != best["file"]:
            leftover.unlink()


def check_same_config(folder: Path, tree: Mapping[str, Any], ignored: tuple[str, ...]) -> None:
    """Check that a folder does not belong to another configuration.

    Raises:
        UserError: it does; the message names the first keys that differ.
    """
    path = folder / "config.yaml"
    if not path.exists():
        return
    try:
        there = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        raise UserError(f"{path} is damaged: delete the folder to start this run over") from None
    ours, theirs = flatten(tree), flatten(there if isinstance(there, dict) else {})
    different = [
        key
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key) and not {key, key.partition(".")[0]} & set(ignored)
    ]
    if different:
        shown = ", ".join(f"{key} ({theirs.get(key)} there, {ours.get(key)} here)" for key in different[:3])
        raise UserError(f"{folder} contains a run with another configuration: {shown}; choose another output_dir")
