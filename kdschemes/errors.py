"""Errors that a user can fix: shown as one line, exit code 2, no traceback."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

ECHOED = 200
"""Characters of a user's value that a message repeats."""


class UserError(ValueError):
    """A mistake in the user's input: a key, a value, a file. Its message is one line that says what to do."""


class ErrorOnMain(UserError):
    """An error of the main process, raised on the other processes; only the main process reports it."""


class TrainingStopped(RuntimeError):
    """Training cannot continue (a loss or a weight is not finite). The one-line message says where."""


def shown(value: object, most: int = ECHOED) -> str:
    """Return a value as a message echoes it: on one line, control characters escaped, cut after `most` characters."""
    text = str(value)[: most + 1]
    cut = "..." if len(text) > most else ""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text[:most]) + cut


def nearest(value: str, allowed: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the allowed word closest to `value`, or "" if none is close."""
    close = difflib.get_close_matches(value[:ECHOED], list(allowed), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def unknown(kind: str, value: str, allowed: Iterable[str]) -> UserError:
    """Return the error for an unknown name: it lists the value, the choices, and the nearest one."""
    allowed = list(allowed)
    return UserError(f"unknown {kind} '{shown(value)}'{nearest(value, allowed)} (choose from {', '.join(allowed)})")


def out_of_memory(error: BaseException) -> UserError | None:
    """Return what to tell the user about an error of Python or torch, if it says that memory is too small."""
    words = ("can't allocate memory", "not enough memory", "out of memory", "Storage size calculation overflowed")
    if not isinstance(error, MemoryError) and not any(word in str(error) for word in words):
        return None
    return UserError(f"out of memory ({shown(first_line(error))}): use a smaller train.batch_size, images or network")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the error's type if it has none."""
    return printable(str(error).strip().partition("\n")[0]) or type(error).__name__


def printable(text: str) -> str:
    """Return text without terminal escape codes and other control characters."""
    return "".join(filter(str.isprintable, re.sub(r"\x1b\[[0-?]*[ -/]*[@-~]", "", text)))
