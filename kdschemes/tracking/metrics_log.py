"""metrics.jsonl: one line per event, written as it happens."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdschemes.config.parse import parse_json
from kdschemes.errors import UserError
from kdschemes.storage.atomic import atomic_write, verify_guards
from kdschemes.storage.results import plain

ADVICE = "restore it, or delete the run's folder to start again"


def eval_row(split: str, epoch: int, step: int, metrics: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Return the line of `metrics.jsonl` with the heads' metrics on a split."""
    row: dict[str, Any] = {"kind": "eval", "split": split, "epoch": epoch, "step": step}
    return row | {f"{head}/{name}": value for head, values in metrics.items() for name, value in values.items()}


def train_row(
    step: int, epoch: float, learning_rate: float, losses: Mapping[str, float], weights: Mapping[str, float]
) -> dict[str, Any]:
    """Return the line of `metrics.jsonl` with the mean losses since the previous line, and the terms' weights."""
    row: dict[str, Any] = {"kind": "train", "step": step, "epoch": epoch, "lr": learning_rate}
    row |= {f"loss/{name}": value for name, value in losses.items()}
    return row | {f"weight/{name}": weight for name, weight in weights.items()}


def continued_row(step: int, epoch: int, run: str, changed: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    """Return the first line of `metrics.jsonl` of a run that continues another: after which epoch, what changes."""
    changes = {key: list(both) for key, both in changed.items()}
    return {"kind": "continued", "step": step, "epoch": epoch, "run": run, "changed": changes}


class MetricsLog:
    """A file of JSON objects, one per line, each line flushed as it is written.

    The content of `metrics.jsonl` is a function of the configuration alone, so that equal runs give equal bytes:
    times belong in a second log. Floats are written so that they read back exactly, non-finite ones as the
    strings "nan", "inf" and "-inf"; keys keep their order.

    Raises:
        UserError: by all methods, if the file can't be written; by `write`, if it was deleted, renamed or changed.
        FolderLost: by `write`, if the whole folder was, or is another process's.
    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        """Open the log from the start, or after its first `offset` bytes (from the checkpoint); the rest is cut.

        An existing log is replaced by a copy, so that anything another process still writes into the old one is lost.
        """
        self.path = path
        self.offset = offset
        try:
            content = path.read_bytes()[:offset] if path.exists() else b""
            self._digest = hashlib.sha256(content)
            if path.exists():
                atomic_write(path, content)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise cannot_write(path, error) from None

    def write(self, row: Mapping[str, Any]) -> None:
        """Add one line."""
        line = (json.dumps(plain(row), allow_nan=False) + "\n").encode()
        self.offset += len(line)
        self._digest.update(line)
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            self._check_place()
        except OSError as error:
            raise cannot_write(self.path, error) from None

    def _check_place(self) -> None:
        """Refuse to continue without the file that was written so far at the log's path."""
        try:
            change = "" if self.path.stat().st_size == self.offset else "cut, added to or replaced"
        except (FileNotFoundError, NotADirectoryError):
            change = "deleted or renamed"
        if change:
            verify_guards(self.path)
            raise UserError(f"{self.path} was {change} while this run wrote into it: {ADVICE}")

    def sync(self) -> tuple[int, str]:
        """Flush to disk, and return the length in bytes and the SHA-256 for the checkpoint."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise cannot_write(self.path, error) from None
        return self.offset, self._digest.hexdigest()

    def close(self) -> None:
        self._file.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a `MetricsLog` file; the strings "nan", "inf" and "-inf" as floats again.

    An incomplete last line is left out.

    Raises:
        UserError: the file can't be read, or another line is not a JSON object.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    rows = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = parse_json(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise UserError(f"{path} line {number} is not a JSON object: delete the line, or run again")
        rows.append({key: float(value) if value in ("nan", "inf", "-inf") else value for key, value in row.items()})
    return rows


def cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(f"{path} cannot be written: {error.strerror or error}; fix that and run again")
