"""What `accelerate launch` starts: read the overrides, then train. `run.py --help` lists every key."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from kdschemes.config.load import load_config
from kdschemes.errors import UserError

RECIPES = Path(__file__).resolve().parent / "experiments"


def main(arguments: list[str]) -> int:
    """Run one configuration; return the process's exit code."""
    first = os.environ.get("RANK", "0") == "0"
    if {"-h", "--help"} & set(arguments):
        from kdschemes.config.describe import help_text

        if first:
            print(help_text())
        return 0
    try:
        config = load_config(arguments, recipes=RECIPES)
    except UserError as error:
        if first:
            print(f"error: {error}", file=sys.stderr)
        return 2
    # Threads that spin while they wait steal the cores from the ones that work; read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from kdschemes.results import results_table
    from kdschemes.train import TrainingStopped, train

    try:
        finished = train(config)
    except (UserError, TrainingStopped) as error:
        if first:
            print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    if first:
        print(results_table(finished.results))
        print(f"run folder: {finished.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
