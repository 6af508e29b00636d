"""What our functions call each reference of the losses of adaptive logits: (inputs by name, parameters) to the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from kdschemes.losses.logit_correlation import batch_correlation, class_correlation
from kdschemes.losses.response.srd import srd
from kdschemes.losses.response.uskd import uskd

Case = dict[str, Any]
Reference = Callable[[dict[str, Tensor], Case], Tensor]


def simple_recipe(x: dict[str, Tensor], p: Case) -> Tensor:
    logits = {"student_logits": x["ls"], "teacher_logits": x["lt"]}
    return srd(x["s"], x["t"], **logits, exponent=float(p["e"]), temperature=float(p["T"]))


def self_labels(x: dict[str, Tensor], p: Case) -> Tensor:
    weak = x["f"] @ x["W"].mT + x["b"]
    return uskd(x["s"], weak, x["y"], alpha=p["alpha"], beta=p["beta"], mu=p["mu"], rank="reference")


REFERENCES: dict[str, Reference] = {
    "MLKD_bc": lambda x, p: batch_correlation(x["s"], x["t"], temperature=float(p["T"])),
    "MLKD_cc": lambda x, p: class_correlation(x["s"], x["t"], temperature=float(p["T"])),
    "SRD.torchdistill": simple_recipe,
    "USKD.cls_KD": self_labels,
}
