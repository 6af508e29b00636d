"""What `accelerate launch` starts: `kdschemes train`, with the recipes next to this file."""

from __future__ import annotations

import sys
from pathlib import Path

from kdschemes import __main__ as program

RECIPES = Path(__file__).resolve().parent / "experiments"


def main(arguments: list[str]) -> int:
    """Run one configuration; return the process's exit code."""
    return program.main(["train", *arguments], recipes=RECIPES)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
