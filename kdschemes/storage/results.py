"""`results.json`: the results of a finished run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdschemes.config.parse import parse_json
from kdschemes.errors import UserError
from kdschemes.storage.atomic import atomic_write

RESULTS = "results.json"


def write_json(path: Path, data: Any) -> None:
    """Write `data` as JSON atomically; `plain` converts numbers that are not finite.

    Raises:
        UserError: the file cannot be written.
    """
    atomic_write(path, (json.dumps(plain(data), indent=2, allow_nan=False) + "\n").encode())


def read_results(folder: Path) -> dict[str, Any] | None:
    """Return the contents of `results.json` in a run's folder; None if the run is not finished.

    Raises:
        UserError: the file is damaged.
    """
    try:
        results = parse_json((folder / RESULTS).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError):
        results = None
    if not isinstance(results, dict):
        raise UserError(f"{folder / RESULTS} is damaged: delete it and run again")
    return results


def plain(value: Any) -> Any:
    """Return `value` with floats that JSON cannot represent as the strings "nan", "inf", and "-inf".

    `float()` parses them. Mappings become dicts, tuples become lists.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def mean_over_peers(heads: Mapping[str, Any], peers: Sequence[str]) -> dict[str, Any] | None:
    """Return the mean of each metric over the peers, structured like one head's entry; None without peers.

    For peers, report this mean or a peer chosen in advance, never the best peer.
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
