"""`results.json`: the results of a finished run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Required

import pydantic
from typing_extensions import TypedDict

from kdschemes import checksums
from kdschemes.config.parse import parse_json
from kdschemes.errors import UserError, first_line
from kdschemes.storage.atomic import atomic_write

RESULTS = "results.json"

Number = float | Literal["nan", "inf", "-inf"]
Metrics = dict[str, Number]
ByEpoch = dict[Literal["last", "best"], dict[Literal["epoch", "val", "test"], int | Metrics | None] | None]


class Results(TypedDict, total=False):
    """The contents of `results.json` that are read again; there may be more."""

    __pydantic_config__ = pydantic.ConfigDict(strict=True, extra="allow")  # type: ignore[misc]

    run: str
    scheme: str
    method: str
    data: str
    data_digest: str
    seed: int
    epochs: int
    primary_head: Required[str]
    teacher: str | None
    teacher_checkpoint: str | list[str] | None
    heads: Required[dict[str, ByEpoch]]
    mean_over_peers: ByEpoch | None
    cost: dict[str, dict[str, Number | None]]
    train_macs_per_image: Number | None
    samples: dict[str, int]
    group: str | None
    wall_seconds: Number
    train_seconds: Number
    images_per_second: Number
    pack_size: int
    peak_memory_bytes: Number | None
    processes: int
    device: str
    precision: str
    versions: dict[str, str]
    code: dict[str, str]


SCHEMA = pydantic.TypeAdapter(Results)


def write_json(path: Path, data: Any) -> None:
    """Write `data` as JSON atomically; `plain` converts numbers that are not finite.

    Raises:
        UserError: the file cannot be written.
    """
    atomic_write(path, (json.dumps(plain(data), indent=2, allow_nan=False) + "\n").encode())


def write_results(folder: Path, results: Mapping[str, Any]) -> None:
    """Write `results.json` with its checksum.

    Raises:
        UserError: the file cannot be written.
    """
    atomic_write(folder / RESULTS, checksums.json_with_checksum(plain(results)))


def read_results(folder: Path) -> dict[str, Any] | None:
    """Return the contents of `results.json` in a run's folder; None if the run is not finished.

    Raises:
        UserError: the file is damaged: it is not JSON, does not match its checksum, or has a value of the wrong type.
    """
    path = folder / RESULTS
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is not a file")
        results = parse_json(path.read_bytes())
        SCHEMA.validate_python(results)
        if checksums.json_is_intact(results):
            return {key: value for key, value in results.items() if key != checksums.KEY}
        fault = "it does not match its checksum"
    except (FileNotFoundError, NotADirectoryError):
        return None
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        fault = f"{'.'.join(map(str, first['loc'])) or 'content'}: {first['msg']}"
    except (OSError, ValueError) as error:
        fault = first_line(error)
    raise UserError(f"{path} is damaged ({fault[:120]}): delete it and run again")


def main_metric(metrics: Mapping[str, Any]) -> str:
    """Return the metric that epochs are chosen by: `map` of images with several labels, else `top1`."""
    return "map" if "map" in metrics else "top1"


def metric_title(metric: str) -> str:
    """Return how a main metric is called in tables and plots."""
    return "mAP" if metric == "map" else "top-1"


def reported(results: Mapping[str, Any], split: str, head: str | None = None) -> float | None:
    """Return the main metric after the last epoch, of the primary or another head; None if it was not evaluated."""
    found = (results["heads"].get(head or results["primary_head"]) or {}).get("last") or {}
    return float(found[split][main_metric(found[split])]) if found.get(split) else None


def worse_teacher(teacher: float | None, student: float | None, images: int, *, alone: bool) -> str | None:
    """Return that a teacher is worse than its student, by the main metric on so many images; None if it is not.

    `alone`: the student was trained without the teacher. Otherwise, it is the student of this teacher.
    """
    if teacher is None or student is None or teacher >= student:
        return None
    whom = "its student trained without it" if alone else "its own student"
    return (
        f"is worse than {whom}: {teacher:.2f} against {student:.2f} % of {images:,} images; choose a larger one, or "
        "train it longer or on more images"
    )


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
