"""Tf-KD_reg: a teacher made from the label alone."""

from __future__ import annotations

from tests.losses import oracles_response
from tests.schemes.cases import base
from tests.schemes.formulas import Formula, Seen
from tests.schemes.self_distillation.formulas import hard

TFKD_REG = base("self", "tfkd_reg")


def expected_total(seen: Seen) -> float:
    chosen = seen.config.losses.response
    settings = {key: getattr(chosen, key) for key in ("temperature", "label_prob", "multiplier")}
    soft = oracles_response.tfkd_reg(seen.logits("student"), seen.labels, **settings)
    return seen.config.scheme.ce_weight * hard(seen) + chosen.weight * soft


FORMULA: Formula = expected_total
EXACT = {
    "tfkd_reg-mobile": [
        *TFKD_REG,
        "scheme.ce_weight=0.05",
        "losses.response={weight: 0.95, temperature: 40, multiplier: 1}",
    ],
}
