"""Label smoothing."""

from __future__ import annotations

from tests.schemes.cases import base
from tests.schemes.formulas import Formula, Seen
from tests.schemes.supervised.formulas import smoothed


def expected_total(seen: Seen) -> float:
    return smoothed(seen, "student")


FORMULA: Formula = expected_total
EXACT = {"smoothed-over-others": [*base("supervised", "label_smoothing"), "scheme.label_smoothing_over=others"]}
