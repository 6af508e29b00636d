"""What our functions call each reference of the self-distillation methods: (inputs by name, parameters) to the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kdschemes.core.cross_entropy import cross_entropy
from kdschemes.core.schedules import constant
from kdschemes.core.types import Batch, Output
from kdschemes.losses.response.kd import kd
from kdschemes.losses.response.soft_ce import soft_ce
from kdschemes.schemes.self_distillation.dlb import SuperviseBoth

Case = dict[str, Any]
Reference = Callable[[dict[str, Tensor], Case], Tensor]


def progressive(x: dict[str, Tensor], p: Case) -> Tensor:
    """The reference's targets are rounded to float32, so that their sum, which ours have at 1, is not quite 1."""
    alpha, rows = p["alpha_t"], zip(x["s"].split(1), x["prev"].split(1), strict=True)
    soft = torch.stack([past.sum() * soft_ce(z, past.log(), temperature=1.0) for z, past in rows]).mean()
    return (1 - alpha) * cross_entropy(x["s"], x["y"]) + alpha * soft


def last_batch(x: dict[str, Tensor], p: Case) -> Tensor:
    """z0 are the logits of the batch seen again, z1 those of the new one."""
    before, now = (Batch(torch.zeros(len(y), 1, 1, 1), y, y) for y in (x["y0"], x["y"]))
    batch = Batch(now.images, now.labels, now.index, aux_batches={"previous": before})
    hard = SuperviseBoth("now", "again", "previous", constant(1.0))
    outputs = {"now": Output(x["z1"]), "again": Output(x["z0"])}
    return hard(outputs, batch) + p["alpha"] * kd(x["z0"], x["t"], temperature=p["T"])


REFERENCES: dict[str, Reference] = {
    "CS-KD": lambda x, p: kd(x["s"], x["t"], temperature=float(p["T"])),
    "PS-KD": progressive,
    "DLB": last_batch,
}
