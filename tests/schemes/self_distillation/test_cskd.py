"""CS-KD: another sample of the same class teaches each sample."""

from __future__ import annotations

from kdschemes.losses.response.kd import kd
from tests.losses import oracles
from tests.schemes.cases import START, base, batch_for, build
from tests.schemes.formulas import Formula, Reference, Seen
from tests.schemes.self_distillation.cases import forward_passes, outputs_of
from tests.schemes.self_distillation.formulas import hard

CSKD = base("self", "cskd")


def expected_total(seen: Seen) -> float:
    temperature, weight = seen.config.losses.response.temperature, seen.config.losses.response.weight
    names = ("student", "student/classmate")
    soft = oracles.kd(seen.logits(names[0]), seen.logits(names[1]), temperature=temperature)
    return hard(seen) + weight * soft


FORMULA: Formula = expected_total
EXACT = {"cskd-other": [*CSKD, "losses.response.weight=3", "losses.response.temperature=1"]}
VARIANTS = {"self-cskd-average": [*CSKD, "train.ema=0.9", "losses.response=dist"]}
REFERENCES: dict[str, Reference] = {"CS-KD": lambda x, p: kd(x["s"], x["t"], temperature=float(p["T"]))}


def test_a_step_takes_two_forward_passes() -> None:
    scheme = build(*CSKD).train()
    scheme(batch_for(scheme), START)
    assert forward_passes(scheme) == 2


def test_no_gradient_reaches_the_other_sample_of_the_class() -> None:
    scheme = build(*base("self", "cskd")).train()
    out = outputs_of(scheme, batch_for(scheme))
    assert out["student"].logits.requires_grad
    assert not out["student/classmate"].logits.requires_grad
