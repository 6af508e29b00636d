"""Which topologies may run. A topology is Python: only files that the user names on a command line are run.

What a recipe, a study or a run's folder says may come from somebody else: it can choose among the allowed files, but
not allow one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from kdschemes.config import Config
from kdschemes.config.parse import read_file
from kdschemes.config.schemes.custom import Topology
from kdschemes.errors import UserError, shown

ALLOWED = "KDSCHEMES_TOPOLOGIES"
"""Environment variable: the SHA-256 of the allowed files, joined by ':'. A study's processes and jobs inherit it."""


class TopologyRefused(UserError):
    """Topologies that the user did not name. The message ends where the command that allows them belongs."""

    def __init__(self, files: Iterable[str]) -> None:
        self.files = tuple(files)
        super().__init__(
            f"topology {', '.join(self.files)} is Python code that a file names, not you; if you trust it, allow it"
        )


def allow(file: Path) -> None:
    """Allow a file that the user typed: in this process and in those that it starts from now on.

    Raises:
        UserError: it cannot be read.
    """
    digests = [*_allowed(), hashlib.sha256(_read(file)).hexdigest()]
    os.environ[ALLOWED] = ":".join(dict.fromkeys(digests))


def check_allowed(configs: Iterable[Config]) -> None:
    """Refuse topologies that were not allowed.

    Raises:
        TopologyRefused: some were not.
    """
    files = dict.fromkeys(config.scheme.file for config in configs if isinstance(config.scheme, Topology))
    if refused := [file for file in files if hashlib.sha256(_read(Path(file))).hexdigest() not in _allowed()]:
        raise TopologyRefused(refused)


def read_allowed(scheme: Topology) -> bytes:
    """Return the text of a topology's file, to be run.

    Raises:
        UserError: it was not allowed, has changed, or cannot be read.
    """
    text = _read(Path(scheme.file))
    digest = hashlib.sha256(text).hexdigest()
    if digest not in _allowed():
        raise TopologyRefused([scheme.file])
    if not digest.startswith(scheme.digest):
        raise UserError(f"recipe {scheme.file} has changed since this run began: choose it with experiment=")
    return text


def _allowed() -> list[str]:
    return os.environ.get(ALLOWED, "").split(":")


def _read(file: Path) -> bytes:
    return read_file(file, f"recipe {shown(file)}")
