"""Deep supervision: the sum of the cross-entropies of all exits."""

from __future__ import annotations

from tests.schemes.cases import base
from tests.schemes.formulas import Formula, Seen
from tests.schemes.supervised.formulas import smoothed


def expected_total(seen: Seen) -> float:
    return smoothed(seen, "student", "student/exit1", "student/exit2")


SMOOTHED = [*base("supervised", "deep_supervision"), "scheme.label_smoothing=0.2"]

FORMULA: Formula = expected_total
EXACT = {
    "deep-smoothed": SMOOTHED,
    "deep-smoothed-over-others": [*SMOOTHED, "scheme.label_smoothing_over=others"],
}
