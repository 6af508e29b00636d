"""Tf-KD_self: a network trained before, of the same architecture, teaches."""

from __future__ import annotations

import torch
from torch import Tensor

from kdschemes.core.types import Batch, Output
from tests.losses import oracles
from tests.schemes.cases import START, base, build
from tests.schemes.formulas import Case, Formula, Inputs, Reference, Seen
from tests.schemes.self_distillation.formulas import hard

TFKD_SELF = base("self", "tfkd_self")


def expected_total(seen: Seen) -> float:
    student, teacher = seen.logits("student"), seen.logits("teacher")
    response, alpha = seen.config.losses.response, seen.config.scheme.alpha
    soft = oracles.kd(student, teacher, temperature=response.temperature) / student.shape[1]
    return (1 - alpha) * hard(seen) + alpha * response.weight * soft


def recorded(x: Inputs, p: Case) -> Tensor:
    """The total of the method with these constants, if its networks gave these logits."""
    constants = [f"losses.response.temperature={p['T']}", f"losses.response.weight={p['m']}"]
    scheme = build(*base("self", "tfkd_self", "convnet"), f"scheme.alpha={p['alpha']}", *constants)
    outputs = {"student": Output(x["s"]), "teacher": Output(x["t"])}
    batch = Batch(torch.zeros(len(x["y"]), 1, 8, 8), x["y"], torch.arange(len(x["y"])))
    return torch.stack([term.weight(START) * term(outputs, batch) for term in scheme.terms]).sum()


FORMULA: Formula = expected_total
EXACT = {"tfkd_self-other": [*TFKD_SELF, "scheme.alpha=0.9", "losses.response.weight=10"]}
REFERENCES: dict[str, Reference] = {"TF-KD_self": recorded}
