"""What `accelerate launch` starts: read the overrides, then train. `run.py --help` lists every key."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from kdschemes.config import Config
from kdschemes.config.load import load_config
from kdschemes.errors import ErrorOnMain, TrainingStopped, UserError
from kdschemes.training.signals import StopSignal

RECIPES = Path(__file__).resolve().parent / "experiments"


def main(arguments: list[str]) -> int:
    """Run one configuration; return the process's exit code."""
    first = os.environ.get("RANK", "0") == "0"
    if {"-h", "--help"} & set(arguments):
        from kdschemes.config.help import help_text

        try:
            if first:
                print(help_text(), flush=True)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    try:
        config = load_config(arguments, recipes=RECIPES)
    except UserError as error:
        if first:
            print_error(error)
        return 2
    with StopSignal() as stop:
        return run(config, stop, first=first)


def run(config: Config, stop: StopSignal, *, first: bool) -> int:
    """Train one run; return the process's exit code. Importing torch takes seconds: signals are remembered by then."""
    from kdschemes.tracking.tables import results_table
    from kdschemes.training.train import train

    try:
        finished = train(config, stop)
    except TrainingStopped as error:
        if first:
            print_error(error)
        return 1
    except UserError as error:
        if not isinstance(error, ErrorOnMain):
            print_error(error if first else UserError(f"{this_process()}: {error}"))
        return 2
    except KeyboardInterrupt:
        return 130
    if first:
        print(results_table(finished.results))
        print(f"run folder: {finished.folder}")
    return 0


def this_process() -> str:
    """Return the number of this process and its node, as SLURM names it where it can."""
    return f"process {os.environ.get('RANK')} on {os.environ.get('SLURMD_NODENAME') or socket.gethostname()}"


def print_error(error: Exception) -> None:
    """Print an error as one line, whatever line breaks a value or a library's message holds."""
    print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
