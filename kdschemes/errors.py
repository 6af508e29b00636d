"""Errors that a user can mend: shown as one line, exit code 2, no trace."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave: a key, a value, a file. Its message is one line that says what to do."""


class ErrorOnMain(UserError):
    """The error of the first process, on another one: it is told once, by the first."""


class TrainingStopped(RuntimeError):
    """Training cannot go on (a loss or a weight that is not finite). One line says where."""


def nearest(value: str, allowed: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the allowed word closest to `value`, or nothing if none is close."""
    close = difflib.get_close_matches(value, list(allowed), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def unknown(kind: str, value: str, allowed: Iterable[str]) -> UserError:
    """Return the error for a name that is in no table: it names the value, the choices and the nearest one."""
    allowed = list(allowed)
    return UserError(f"unknown {kind} '{value}'{nearest(value, allowed)} (choose from {', '.join(allowed)})")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the error's type if it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
