"""What our functions call each reference of the relation losses: (inputs by name, parameters) to the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional

from kdschemes.losses.relation import fsp, rkd_angle, rkd_distance

Case = dict[str, Any]
Reference = Callable[[dict[str, Tensor], Case], Tensor]


def relations(x: dict[str, Tensor], p: Case) -> Tensor:
    return p["wd"] * rkd_distance(x["s"], x["t"]) + p["wa"] * rkd_angle(x["s"], x["t"])


def unit_relations(x: dict[str, Tensor], p: Case) -> Tensor:
    return relations({name: functional.normalize(e, dim=1) for name, e in x.items()}, p)


REFERENCES: dict[str, Reference] = {
    "RKD.RepDistiller": relations,
    "RKD.lenscloth": relations,
    "RKD.mdistiller": relations,
    "RKD.torchdistill": relations,
    "RKD.mmrazor": unit_relations,
    "FSP.RepDistiller": lambda x, p: fsp((x["s"], x["s2"]), (x["t"], x["t2"])),
}
