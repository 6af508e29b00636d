"""Which code trains a run, and by which command."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

import kdschemes
from kdschemes.config import Config
from kdschemes.config.command import command_of

PACKAGE = Path(kdschemes.__file__).resolve().parent


def code_of(config: Config, folder: Path) -> dict[str, str]:
    """Return the version of kdschemes, in a git checkout its commit (`commit()`), and the command of the run."""
    found = {"version": kdschemes.__version__, "commit": commit(), "command": command_of(config, folder)}
    return {key: value for key, value in found.items() if value is not None}


@cache
def commit() -> str | None:
    """Return the commit that the package is checked out from, with `-dirty` if files differ; None without git.

    It is that of the first call: later changes to the files do not reach a process that has imported them.
    """
    tracked = _git("ls-files", "--error-unmatch", "__init__.py")
    return _git("describe", "--always", "--exclude=*", "--abbrev=12", "--dirty") if tracked else None


def _git(*arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(PACKAGE), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
