"""Numbers of runs and groups, as their `results.json` has them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from kdschemes.report.groups import Group, Member
from kdschemes.storage.results import main_metric
from kdschemes.tracking.tables import count_text

MEAN_OVER_PEERS = "mean over peers"

NOTHING = "-"


def primary_head(group: Group) -> str:
    """Return the name of the reported head of a group with finished runs."""
    return str(group.results[0]["primary_head"])


def heads(group: Group) -> list[str]:
    """Return the evaluated heads of a group with finished runs, then `MEAN_OVER_PEERS` if it has peers."""
    first = group.results[0]
    return [*first["heads"], *([MEAN_OVER_PEERS] if first.get("mean_over_peers") else [])]


def metric(member: Member, head: str, which: str, key: str, split: str = "test") -> float | None:
    """Return one metric of a finished run (`which`: last or best epoch); None where it was not evaluated.

    `top1` stands for the main metric, which is the mAP of images with several labels.
    """
    assert member.results is not None
    of = member.results.get("mean_over_peers") if head == MEAN_OVER_PEERS else member.results["heads"].get(head)
    found = ((of or {}).get(which) or {}).get(split) or {}
    value = found.get(main_metric(found) if key == "top1" else key)
    return None if value is None else float(value)


def by_seed(group: Group, head: str, which: str, key: str, split: str = "test") -> dict[int, float]:
    """Return one metric of a group's finished runs by seed, where it exists."""
    found = {member.row.entry.seed: metric(member, head, which, key, split) for member in group.finished}
    return {seed: value for seed, value in sorted(found.items()) if value is not None}


def shared_teacher(group: Group, head: str) -> bool:
    """Return whether a head is one teacher, of the same weights, in several runs of a group."""
    of = [
        (result.get("teacher_checkpoint"), metric(member, head, "last", "top1"), metric(member, head, "last", "nll"))
        for member, result in zip(group.finished, group.results, strict=True)
        if result.get("teacher") == head
    ]
    return 1 < len(of) == len(group.results) and all(other == of[0] for other in of)


def spread(group: Group, head: str, which: str, key: str) -> list[float]:
    """Return one metric of a group's finished runs on the test set, as independent values.

    A teacher that all runs share is one network: it has one value, not one for each seed.
    """
    values = list(by_seed(group, head, which, key).values())
    return values[:1] if shared_teacher(group, head) else values


def accuracy(group: Group) -> dict[int, float]:
    """Return the reported head's top-1 in percent on the test set after the last epoch, by seed."""
    return by_seed(group, primary_head(group), "last", "top1") if group.finished else {}


def cost(group: Group, head: str, key: str) -> list[float]:
    """Return a cost of a head (`parameters` or `macs`) in each finished run that has recorded it."""
    of = primary_head(group) if head == MEAN_OVER_PEERS else head
    found = [(result.get("cost") or {}).get(of, {}).get(key) for result in group.results]
    return [float(value) for value in found if value is not None]


def each(group: Group, key: str) -> list[float]:
    """Return a top-level number of `results.json` for each finished run that has it."""
    return [float(result[key]) for result in group.results if result.get(key) is not None]


def training_macs(group: Group) -> list[float]:
    """Return the training compute of each finished run that has recorded it."""
    found = map(training_compute, group.results)
    return [macs for macs in found if macs is not None]


def training_compute(results: Mapping[str, Any]) -> float | None:
    """Return MACs per image x images per epoch x epochs of a `results.json`; None if it has no MACs of training."""
    macs = results.get("train_macs_per_image")
    return None if macs is None else float(macs * results["samples"]["train"] * results["epochs"])


def mean_std(values: Collection[float], digits: int) -> str:
    """Return the mean of values, with their sample std if there are several; "-" for none."""
    if not values:
        return NOTHING
    std = f" ± {std_of(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean_of(values):.{digits}f}{std}"


def mean_of(values: Collection[float]) -> float:
    """Return the mean; NaN if a value is not finite."""
    return statistics.fmean(values) if all(map(math.isfinite, values)) else math.nan


def std_of(values: Collection[float]) -> float:
    """Return the sample std, 0 for a single value; NaN if a value is not finite."""
    if not all(map(math.isfinite, values)):
        return math.nan
    return statistics.stdev(values) if len(values) > 1 else 0.0


def p_value(p: float) -> str:
    """Return a p-value as written in a column of them, `< 0.001` or `0.042`; `-` if it is NaN."""
    return NOTHING if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def probability(p: float) -> str:
    """Return a p-value as written in a sentence, `p < 0.001` or `p = 0.042`; `-` if it is NaN."""
    return NOTHING if math.isnan(p) else "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def signed(value: float, digits: int = 2) -> str:
    """Return a difference with its sign; "-" if it is NaN."""
    return NOTHING if math.isnan(value) else f"{value:+z.{digits}f}"


def seeds(group: Group) -> str:
    """Return the seeds of the finished runs, and how many are missing."""
    done = ", ".join(str(member.row.entry.seed) for member in group.finished)
    return f"{done} ({len(group.unfinished)} missing)" if group.unfinished else done


def listed(labels: Sequence[str], most: int = 8) -> str:
    """Return labels with commas between them; those beyond `most` are counted."""
    more = f" and {len(labels) - most} more" if len(labels) > most else ""
    return ", ".join(labels[:most]) + more


def name(group: Group) -> str:
    """Return a group's label, with a mark if its runs teach the others."""
    return f"{group.label} (teaches)" if group.earlier else group.label


COSTS: dict[str, tuple[Callable[[Group], list[float]], Callable[[float], str]]] = {
    "parameters": (lambda group: cost(group, primary_head(group), "parameters"), "{:,.0f}".format),
    "MACs": (lambda group: cost(group, primary_head(group), "macs"), count_text),
    "training MACs": (training_macs, count_text),
    "training s": (lambda group: each(group, "train_seconds"), "{:.1f}".format),
    "memory MB": (lambda group: [size / 1e6 for size in each(group, "peak_memory_bytes")], "{:.0f}".format),
}
"""By title: the values of the finished runs that have recorded a cost, and how one is written."""
