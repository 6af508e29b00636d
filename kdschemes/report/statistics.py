"""Paired comparisons over seeds: difference, interval and p-value; nothing is called better on fewer than 3 seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

LEAST_SEEDS = 3
"""Common seeds below which nothing is called better or worse."""

LEVEL = 0.05
"""Level of all verdicts together in one table; intervals cover 1 - LEVEL, each for itself."""

TOO_FEW = f"fewer than {LEAST_SEEDS} common seeds: nothing is called better"


@dataclass(frozen=True, kw_only=True)
class Paired:
    """What a two-sided paired t test says of a - b on `n` common seeds.

    `low` and `high` are the 95 % interval of the mean difference, in the unit of the values. All is NaN where it is not
    defined: the mean on no seed or on values that are not numbers, interval and p on fewer than 2 seeds.
    """

    n: int
    mean_difference: float
    low: float
    high: float
    p: float


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Paired:
    """Compare two methods by their values of each seed; seeds that only one of them has are left out.

    With d = a - b of n seeds, mean m and sample deviation s: t = m / (s / sqrt(n)) with n - 1 degrees of freedom.
    Where all differences are the same, the interval is that one point, and p is 0, or 1 for no difference.
    """
    differences = [float(a[seed]) - float(b[seed]) for seed in sorted(a.keys() & b.keys())]
    n = len(differences)
    if not differences or not all(map(math.isfinite, differences)):
        return Paired(n=n, mean_difference=math.nan, low=math.nan, high=math.nan, p=math.nan)
    mean = statistics.fmean(differences)
    if n < 2:
        return Paired(n=n, mean_difference=mean, low=math.nan, high=math.nan, p=math.nan)
    error = statistics.stdev(differences) / math.sqrt(n)
    if error == 0:
        return Paired(n=n, mean_difference=mean, low=mean, high=mean, p=1.0 if mean == 0 else 0.0)
    half = float(stats.t.ppf(1 - LEVEL / 2, n - 1)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, n - 1))
    return Paired(n=n, mean_difference=mean, low=mean - half, high=mean + half, p=p)


def holm(ps: Sequence[float]) -> list[float]:
    """Return p-values corrected for being several (Holm 1979): that the least is k times, the next k - 1 times its own.

    k counts those that are numbers; NaN stays NaN. A corrected value is at most 1, and never below that of a smaller p.
    """
    order = sorted((index for index, p in enumerate(ps) if not math.isnan(p)), key=lambda index: ps[index])
    corrected = [math.nan] * len(ps)
    least = 0.0
    for rank, index in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * ps[index]))
        corrected[index] = least
    return corrected


def verdicts(found: Sequence[Paired], *, more_is_better: bool = True) -> list[tuple[float, str]]:
    """Return for each comparison of one table its p-value by Holm and the verdict on `a` in words.

    Comparisons on fewer than 3 common seeds get `TOO_FEW` and no p, and do not count among the several.
    """
    corrected = holm([each.p if each.n >= LEAST_SEEDS else math.nan for each in found])
    words = []
    for each, p in zip(found, corrected, strict=True):
        if each.n < LEAST_SEEDS:
            words.append(TOO_FEW)
        elif math.isnan(p):
            words.append("not a number: nothing is called better")
        elif p < LEVEL:
            words.append("better" if (each.mean_difference > 0) is more_is_better else "worse")
        else:
            words.append("not told apart")
    return list(zip(corrected, words, strict=True))
