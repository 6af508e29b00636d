"""Files that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

from kdschemes.errors import UserError


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a crash at any moment, sees the old file or the new one, never a part.

    Raises:
        UserError: the disk is full, or the folder cannot be written; the old file is untouched.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written: {error.strerror or error}; free the disk and run again") from None
