"""USKD: soft labels of the target and non-target classes from a weak classifier on an earlier stage."""

from __future__ import annotations

from kdschemes.core.terms import Transfer
from tests.losses.response.test_uskd import formula_non_target as uskd_non_target
from tests.losses.response.test_uskd import formula_target as uskd_target
from tests.losses.response.test_uskd import formula_weak as uskd_weak
from tests.schemes.cases import base
from tests.schemes.formulas import Formula, Seen, array
from tests.schemes.self_distillation.formulas import hard, pooled

USKD = base("self", "uskd")


def expected_total(seen: Seen) -> float:
    (term,) = (term for term in seen.scheme.terms if isinstance(term, Transfer))
    chosen, layer = seen.config.losses.response, term.loss.weak
    features = pooled(list(seen.out["student"].features.values())[-2])
    weak = features @ array(layer.weight).T + array(layer.bias)
    student, labels = seen.logits("student"), seen.labels
    soft = chosen.alpha * uskd_target(student, labels)
    soft += chosen.beta * uskd_non_target(student, weak, labels, rank=chosen.rank)
    soft += chosen.mu * uskd_weak(weak, labels, smoothing=chosen.smoothing)
    return seen.config.scheme.ce_weight * hard(seen) + chosen.weight * soft


FORMULA: Formula = expected_total
EXACT = {
    "uskd-cifar": [*USKD, "losses.response.alpha=0.1", "losses.response.mu=0.1", "scheme.ce_weight=0.7"],
}
