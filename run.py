"""What `accelerate launch` starts: `kdschemes train`, with the recipes next to this file."""

from __future__ import annotations

import sys
from pathlib import Path

from kdschemes.cli import train

RECIPES = Path(__file__).resolve().parent / "experiments"


def main(arguments: list[str]) -> int:
    """Run one configuration; return the process's exit code."""
    return train(arguments, recipes=RECIPES)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
