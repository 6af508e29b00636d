"""Paired comparisons over seeds: difference, interval and p-value; no verdict with fewer than 3 seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from scipy import stats

LEAST_SEEDS = 3
"""Minimum number of common seeds for a verdict."""

LEVEL = 0.05
"""Family-wise level of all verdicts in one table; each interval covers 1 - LEVEL by itself."""

BySeed = dict[int, float]
"""A value for each seed."""

INCONCLUSIVE = "inconclusive"

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


def paired(a: BySeed, b: BySeed) -> Paired:
    """Compare two methods by their values for each seed; seeds that only one of them has are left out.

    With d = a - b of n seeds, mean m and sample std s: t = m / (s / sqrt(n)) with n - 1 degrees of freedom.
    If all differences are equal, the interval is that one point, and p is 0, or 1 if there is no difference.
    """
    differences = difference(a, b).values()
    n = len(differences)
    mean = statistics.fmean(differences) if n and all(map(math.isfinite, differences)) else math.nan
    if n < 2 or math.isnan(mean):
        return Paired(n=n, mean_difference=mean, low=math.nan, high=math.nan, p=math.nan)
    error = statistics.stdev(differences) / math.sqrt(n)
    if error == 0:
        return Paired(n=n, mean_difference=mean, low=mean, high=mean, p=1.0 if mean == 0 else 0.0)
    half = float(stats.t.ppf(1 - LEVEL / 2, n - 1)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, n - 1))
    return Paired(n=n, mean_difference=mean, low=mean - half, high=mean + half, p=p)


def difference(more: BySeed, less: BySeed) -> BySeed:
    """Return `more` - `less` for the seeds that both have."""
    return {seed: more[seed] - less[seed] for seed in sorted(more.keys() & less.keys())}


def mean_by_seed(values: Collection[BySeed]) -> BySeed:
    """Return the mean of several values by seed, for the seeds that have all of them."""
    seeds = sorted(set.intersection(*map(set, values))) if values else []
    return {seed: statistics.fmean(of[seed] for of in values) for seed in seeds}


def against_zero(values: BySeed) -> Paired:
    """Return the test of differences by seed against 0."""
    return paired(values, dict.fromkeys(values, 0.0))


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
            words.append(INCONCLUSIVE)
    return list(zip(corrected, words, strict=True))
