"""Atomic file writes."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

from kdschemes.errors import UserError

_GUARDS: dict[Path, Callable[[], None]] = {}


@contextlib.contextmanager
def guarded(folder: Path, verify: Callable[[], None]) -> Iterator[None]:
    """Within the block, call `verify` right before a file is put in place anywhere in `folder`; it may raise."""
    _GUARDS[folder.absolute()] = verify
    try:
        yield
    finally:
        del _GUARDS[folder.absolute()]


def verify_guards(path: Path) -> None:
    """Call the `verify` of each guarded folder that contains a file; it may raise."""
    for folder, verify in list(_GUARDS.items()):
        if path.absolute().is_relative_to(folder):
            verify()


def atomic_write(path: Path, data: bytes) -> None:
    """Write a file so that readers see either the old or the new content, never a part, even after a crash.

    The temporary file has a unique name: a process that takes over the folder removes it, and then it can no longer be
    put in place.

    Raises:
        UserError: the disk is full, or the folder cannot be written; the old file is untouched.
        FolderLost: another process has taken over the guarded folder.
    """
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        verify_guards(path)
        partial.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        verify_guards(path)
        raise UserError(f"{path} cannot be written: {error.strerror or error}; free the disk and run again") from None
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
