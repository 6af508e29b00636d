"""Cross-entropy."""

from __future__ import annotations

from tests.schemes.cases import base
from tests.schemes.formulas import Formula, Seen
from tests.schemes.supervised.formulas import smoothed


def expected_total(seen: Seen) -> float:
    return smoothed(seen, "student")


FORMULA: Formula = expected_total
EXACT = {"ce-smoothed": [*base("supervised", "ce"), "scheme.label_smoothing=0.3"]}
VARIANTS = {"supervised-ce-ema": [*base("supervised", "ce"), "train.ema=0.9"]}
