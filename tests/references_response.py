"""What our functions call each reference of the logit losses: (inputs by name, parameters) to the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from kdschemes.losses.response import cross_entropy, kd

Case = dict[str, Any]
Reference = Callable[[dict[str, Tensor], Case], Tensor]


def soft(x: dict[str, Tensor], p: Case) -> Tensor:
    return kd(x["s"], x["t"], temperature=float(p["T"]))


def soft_and_hard(x: dict[str, Tensor], p: Case) -> Tensor:
    return p["alpha"] * soft(x, p) + (1 - p["alpha"]) * cross_entropy(x["s"], x["y"])


def soft_over_classes_and_hard(x: dict[str, Tensor], p: Case) -> Tensor:
    return p["alpha"] * soft(x, p) / x["s"].shape[1] + (1 - p["alpha"]) * cross_entropy(x["s"], x["y"])


REFERENCES: dict[str, Reference] = {
    "KD.RepDistiller": soft,
    "KD.mdistiller": soft,
    "KD.mmrazor": soft,
    "KD.sota": soft,
    "KD.attention-transfer": soft_and_hard,
    "KD.torchdistill": lambda x, p: soft_and_hard(x, {**p, "alpha": 1 - p["alpha"]}),
    "KD.torchdistill_alpha0": lambda x, p: soft(x, p) / p["T"] ** 2,
    "KD.haitongli": soft_over_classes_and_hard,
    "KD.Teacher-free": soft_over_classes_and_hard,
}
