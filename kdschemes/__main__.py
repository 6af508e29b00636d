"""Where the program starts: `kdschemes`, `python -m kdschemes` and `run.py`."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

INTERRUPTED = 128 + signal.SIGINT


def main(arguments: Sequence[str] | None = None, *, recipes: Path | None = None) -> int:
    """Run one command and return the process's exit code; `recipes` is that of `kdschemes.cli.train`.

    Ctrl-C leaves no traceback, even while modules are imported, where libraries may catch the exception or print it.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        if handler is signal.default_int_handler:
            signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
        _sign_of_life(list(sys.argv[1:] if arguments is None else arguments))
        from kdschemes import cli

        signal.signal(signal.SIGINT, handler)
        return cli.main(arguments, recipes=recipes)
    except KeyboardInterrupt:
        return INTERRUPTED


def _sign_of_life(words: Sequence[str]) -> None:
    """Show on a terminal that a run is about to start, before anything is imported; the next line replaces it."""
    helps = {"-h", "--help"} & set(words)
    if words[:1] == ["train"] and not helps and os.environ.get("RANK", "0") == "0" and sys.stdout.isatty():
        print("starting ...", end="\r", flush=True)


if __name__ == "__main__":
    sys.exit(main())
