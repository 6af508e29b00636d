"""Real runs of two processes that fill teacher caches: `python -m tests.teacher_cache.worker FOLDER`, once a process.

`FOLDER/runs.json` holds the words of each run. As `tests.distributed.worker`; `test_cache` starts it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from run import main as run


def main() -> None:
    folder = Path(sys.argv[1])
    codes = [run(words) for words in json.loads((folder / "runs.json").read_text())]
    torch.save(codes, folder / f"{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main()
