"""results.json: what a finished run gave."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdschemes.errors import UserError
from kdschemes.storage.atomic import atomic_write

RESULTS = "results.json"


def write_json(path: Path, data: Any) -> None:
    """Write `data` as JSON, whole or not at all; numbers that are not finite as `plain` gives them.

    Raises:
        UserError: the file can't be written.
    """
    atomic_write(path, (json.dumps(plain(data), indent=2, allow_nan=False) + "\n").encode())


def read_results(folder: Path) -> dict[str, Any] | None:
    """Return what the `results.json` of a run's folder holds, None where the run is not finished.

    Raises:
        UserError: the file is damaged.
    """
    try:
        results: dict[str, Any] = json.loads((folder / RESULTS).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError):
        raise UserError(f"{folder / RESULTS} is damaged: delete it and run again") from None
    return results


def plain(value: Any) -> Any:
    """Return `value` with floats that JSON has no number for as the strings "nan", "inf" and "-inf".

    `float()` reads them back. Mappings become dicts, tuples become lists.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def mean_over_peers(heads: Mapping[str, Any], peers: Sequence[str]) -> dict[str, Any] | None:
    """Return the mean of each metric over heads that are equals, shaped as the entry of one head; None without peers.

    It is the number to report of peers, beside that of a peer chosen beforehand; never the best of them.
    """
    if not peers:
        return None

    def mean(which: str, split: str) -> dict[str, float] | None:
        found = [heads[peer][which][split] for peer in peers]
        if found[0] is None:
            return None
        return {name: sum(metrics[name] for metrics in found) / len(found) for name in found[0]}

    return {
        which: None
        if heads[peers[0]][which] is None
        else {"epoch": heads[peers[0]][which]["epoch"]} | {split: mean(which, split) for split in ("val", "test")}
        for which in ("last", "best")
    }
