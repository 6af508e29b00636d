"""Paired comparisons over seeds: difference, interval and p-value; no verdict with fewer than 3 seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

LEAST_SEEDS = 3
"""Minimum number of common seeds for a verdict."""

LEVEL = 0.05
"""Family-wise level of all verdicts in one table; each interval covers 1 - LEVEL by itself."""

TOO_FEW = f"fewer than {LEAST_SEEDS} common seeds: no verdict"


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Result of a two-sided paired t test of a - b on `n` common seeds.

    `low` and `high` are the 95 % interval of the mean difference, in the unit of the values. Undefined values are
    NaN: the mean without seeds or with NaN values, interval and p with fewer than 2 seeds.
    """

    n: int
    mean_difference: float
    low: float
    high: float
    p: float


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Paired:
    """Compare two methods by their values for each seed; seeds that only one of them has are left out.

    With d = a - b of n seeds, mean m and sample std s: t = m / (s / sqrt(n)) with n - 1 degrees of freedom.
    If all differences are equal, the interval is that one point, and p is 0, or 1 if there is no difference.
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
    """Return p-values corrected for multiple testing (Holm 1979): the smallest times k, the next times k - 1, ...

    k counts those that are not NaN; NaN stays NaN. A corrected value is at most 1 and never below that of a smaller p.
    """
    order = sorted((index for index, p in enumerate(ps) if not math.isnan(p)), key=lambda index: ps[index])
    corrected = [math.nan] * len(ps)
    least = 0.0
    for rank, index in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * ps[index]))
        corrected[index] = least
    return corrected


def verdicts(found: Sequence[Paired], *, more_is_better: bool = True) -> list[tuple[float, str]]:
    """Return for each comparison of one table its Holm-corrected p-value and the verdict on `a` in words.

    Comparisons on fewer than 3 common seeds get `TOO_FEW` and no p, and are not counted in the correction.
    """
    corrected = holm([each.p if each.n >= LEAST_SEEDS else math.nan for each in found])
    words = []
    for each, p in zip(found, corrected, strict=True):
        if each.n < LEAST_SEEDS:
            words.append(TOO_FEW)
        elif math.isnan(p):
            words.append("not a number: no verdict")
        elif p < LEVEL:
            words.append("better" if (each.mean_difference > 0) is more_is_better else "worse")
        else:
            words.append("inconclusive")
    return list(zip(corrected, words, strict=True))
