"""Numbers of runs and groups, as their `results.json` has them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from kdschemes.report.groups import Group, Member

MEAN_OVER_PEERS = "mean over peers"

NOTHING = "-"

SIZES = ((1e15, " P"), (1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k"))


def primary_head(group: Group) -> str:
    """Return the name of the reported head of a group with finished runs."""
    return str(_results(group)[0]["primary_head"])


def heads(group: Group) -> list[str]:
    """Return the evaluated heads of a group with finished runs, then `MEAN_OVER_PEERS` if it has peers."""
    first = _results(group)[0]
    return [*first["heads"], *([MEAN_OVER_PEERS] if first.get("mean_over_peers") else [])]


def metric(member: Member, head: str, which: str, key: str, split: str = "test") -> float | None:
    """Return one metric of a finished run (`which`: last or best epoch); None where it was not evaluated."""
    assert member.results is not None
    of = member.results.get("mean_over_peers") if head == MEAN_OVER_PEERS else member.results["heads"].get(head)
    value = (((of or {}).get(which) or {}).get(split) or {}).get(key)
    return None if value is None else float(value)


def by_seed(group: Group, head: str, which: str, key: str, split: str = "test") -> dict[int, float]:
    """Return one metric of a group's finished runs by seed, where it exists."""
    found = {member.row.entry.seed: metric(member, head, which, key, split) for member in group.finished}
    return {seed: value for seed, value in sorted(found.items()) if value is not None}


def accuracy(group: Group) -> dict[int, float]:
    """Return the reported head's top-1 in percent on the test set after the last epoch, by seed."""
    return by_seed(group, primary_head(group), "last", "top1") if group.finished else {}


def cost(group: Group, head: str, key: str) -> list[float]:
    """Return a cost of a head (`parameters`, `macs` or `latency_ms`) in each finished run that has recorded it."""
    of = primary_head(group) if head == MEAN_OVER_PEERS else head
    found = [(result.get("cost") or {}).get(of, {}).get(key) for result in _results(group)]
    return [float(value) for value in found if value is not None]


def each(group: Group, key: str) -> list[float]:
    """Return a top-level number of `results.json` for each finished run that has it."""
    return [float(result[key]) for result in _results(group) if result.get(key) is not None]


def training_macs(group: Group) -> list[float]:
    """Return the training compute of each finished run that has recorded it: MACs/image x images/epoch x epochs."""
    return [
        float(result["train_macs_per_image"] * result["samples"]["train"] * result["epochs"])
        for result in _results(group)
        if result.get("train_macs_per_image") is not None
    ]


def mean_std(values: Sequence[float], digits: int) -> str:
    """Return the mean of values, with their sample std if there are several; "-" for none."""
    if not values:
        return NOTHING
    std = f" ± {std_of(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean_of(values):.{digits}f}{std}"


def mean_of(values: Sequence[float]) -> float:
    """Return the mean; NaN if a value is not finite."""
    return statistics.fmean(values) if all(map(math.isfinite, values)) else math.nan


def std_of(values: Sequence[float]) -> float:
    """Return the sample std, 0 for a single value; NaN if a value is not finite."""
    if not all(map(math.isfinite, values)):
        return math.nan
    return statistics.stdev(values) if len(values) > 1 else 0.0


def count(value: float) -> str:
    """Return a count with two decimals and its unit: 3.27 M."""
    for size, unit in SIZES:
        if value >= size:
            return f"{value / size:.2f}{unit}"
    return f"{value:.0f}"


def seeds(group: Group) -> str:
    """Return the seeds of the finished runs, and how many are missing."""
    done = ", ".join(str(member.row.entry.seed) for member in group.finished)
    missing = len(group.members) - len(group.finished)
    return f"{done} ({missing} missing)" if missing else done


def name(group: Group) -> str:
    """Return a group's label, with a mark if its runs teach the others."""
    return f"{group.label} (teaches)" if group.earlier else group.label


def _results(group: Group) -> list[Mapping[str, Any]]:
    return [member.results for member in group.finished if member.results is not None]
