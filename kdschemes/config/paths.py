"""Paths that a user types, in the configuration and on the command line: `~` is expanded here and nowhere else."""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import AfterValidator

from kdschemes.errors import UserError, shown

LONGEST_NAME, LONGEST_PATH = 255, 4095
"""In bytes, of what Linux can open."""


def expand(path: str) -> str:
    """Return a path with `~` or `~USER` at its start replaced by the home folder.

    Raises:
        UserError: there is no such user, or no file can have this path.
    """
    if not path:
        raise UserError("the path is empty")
    found = os.path.expanduser(path)
    if found.startswith("~"):
        name = shown(found.partition("/")[0])
        raise UserError(f"there is no user {name[1:]}; write ./{name} for a file or folder of that name")
    sizes = [len(os.fsencode(name)) for name in found.split("/")]
    if max(sizes) > LONGEST_NAME:
        raise UserError(f"a name of {max(sizes)} bytes: files have names of at most {LONGEST_NAME}")
    if len(os.fsencode(found)) > LONGEST_PATH:
        raise UserError(f"a path of {len(os.fsencode(found))} bytes: paths have at most {LONGEST_PATH}")
    return found


FilePath = Annotated[str, AfterValidator(expand)]
"""The type of options that hold a path."""
