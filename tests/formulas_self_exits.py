"""The totals of the self-distillation methods, and other values of their options to try."""

from __future__ import annotations

import oracles
from formulas import Formula, Seen, last
from variants import SELF

from kdschemes.config.schemes import self_exits as exits


def byot(seen: Seen) -> float:
    return oracles.byot(
        last(seen.out["student"]),
        [last(seen.out["student/exit1"]), last(seen.out["student/exit2"])],
        seen.labels,
        alpha=seen.config.scheme.alpha,
        temperature=seen.config.losses.response.temperature,
        hint_weight=seen.config.losses.feature.weight,
    )


FORMULAS: dict[type, Formula] = {exits.SelfBYOT: byot}
EXACT = {"byot-other": [*SELF, "scheme.alpha=0.2", "losses.response.temperature=1.5", "losses.feature.weight=2"]}
