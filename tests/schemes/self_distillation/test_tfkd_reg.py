"""Tf-KD_reg: a teacher made from the label alone."""

from __future__ import annotations

from tests.losses.response.test_tfkd_reg import formula as tfkd_reg_loss
from tests.schemes.cases import base
from tests.schemes.formulas import Formula, Seen
from tests.schemes.self_distillation.formulas import hard

TFKD_REG = base("self", "tfkd_reg")


def expected_total(seen: Seen) -> float:
    chosen = seen.config.losses.response
    settings = {key: getattr(chosen, key) for key in ("temperature", "label_prob", "multiplier")}
    soft = tfkd_reg_loss(seen.logits("student"), seen.labels, **settings)
    return seen.config.scheme.ce_weight * hard(seen) + chosen.weight * soft


FORMULA: Formula = expected_total
EXACT = {
    "tfkd_reg-mobile": [
        *TFKD_REG,
        "scheme.ce_weight=0.05",
        "losses.response={weight: 0.95, temperature: 40, multiplier: 1}",
    ],
}
