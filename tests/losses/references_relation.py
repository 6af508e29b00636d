"""What our functions call each reference of the relation losses: (inputs by name, parameters) to the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from kdschemes.losses.relation.cc import kernel_congruence, neighbor_congruence
from kdschemes.losses.relation.crd import log_normalizer, memory_similarities, noise_contrastive, refreshed_memory
from kdschemes.losses.relation.fsp import fsp
from kdschemes.losses.relation.pkt import probabilistic_transfer
from kdschemes.losses.relation.rkd import rkd_angle, rkd_distance
from kdschemes.losses.relation.sp import similarity_preserving
from kdschemes.losses.rows import unit_rows

Case = dict[str, Any]
Reference = Callable[[dict[str, Tensor], Case], Tensor]


def relations(x: dict[str, Tensor], p: Case) -> Tensor:
    return p["wd"] * rkd_distance(x["s"], x["t"]) + p["wa"] * rkd_angle(x["s"], x["t"])


def unit_relations(x: dict[str, Tensor], p: Case) -> Tensor:
    return relations({name: unit_rows(e) for name, e in x.items()}, p)


def similarity(x: dict[str, Tensor], p: Case) -> Tensor:
    return similarity_preserving(x["s"], x["t"])


def neighborhoods(x: dict[str, Tensor], p: Case) -> Tensor:
    return probabilistic_transfer(x["s"], x["t"])


def contrast(x: dict[str, Tensor], p: Case, *, steps: int) -> Tensor:
    """The loss of the same batch in step number `steps`; temperature and Z are float32 in the reference."""
    embeddings = {
        "s": unit_rows(functional.linear(x["s"], x["Ws"], x["bs"])),
        "t": unit_rows(functional.linear(x["t"], x["Wt"], x["bt"])),
    }
    memories = {"s": x["m1"].clone(), "t": x["m2"].clone()}
    temperature = torch.tensor(p["tau"]).item()
    normalizers: dict[str, Tensor] = {}
    total = x["s"].new_zeros(())
    for _ in range(steps):
        total = x["s"].new_zeros(())
        for side, other in (("s", "t"), ("t", "s")):
            scores = memory_similarities(embeddings[side], memories[other].clone(), x["idx"], temperature=temperature)
            first = log_normalizer(scores.detach(), population=p["n"])
            rounded = first.exp().float().to(first.dtype).log()
            total = total + noise_contrastive(scores, normalizers.setdefault(side, rounded), population=p["n"])
        for side, memory in memories.items():
            memory[x["y"]] = refreshed_memory(memory[x["y"]], embeddings[side].detach(), momentum=p["mom"])
    return total


REFERENCES: dict[str, Reference] = {
    "RKD.RepDistiller": relations,
    "RKD.lenscloth": relations,
    "RKD.mdistiller": relations,
    "RKD.torchdistill": relations,
    "RKD.mmrazor": unit_relations,
    "FSP.RepDistiller": lambda x, p: fsp((x["s"], x["s2"]), (x["t"], x["t2"])),
    "FSP.torchdistill": lambda x, p: fsp((x["s"], x["s2"]), (x["t"], x["t2"]), pooling="max", distance="column_norms"),
    "SP.RepDistiller": similarity,
    "SP.mdistiller": similarity,
    "SP.torchdistill": lambda x, p: similarity_preserving(x["s"], x["t"], row_norm="l1"),
    "CC.RepDistiller": lambda x, p: neighbor_congruence(x["s"], x["t"]),
    "CC.KDZoo": lambda x, p: kernel_congruence(x["s"], x["t"], gamma=p["g"], order=p["P"]),
    "PKT.RepDistiller": neighborhoods,
    "PKT.mdistiller": neighborhoods,
    "PKT.original": neighborhoods,
    "PKT.torchdistill": neighborhoods,
    "CRD.RepDistiller": lambda x, p: contrast(x, p, steps=1),
    "CRD.RepDistiller_step2": lambda x, p: contrast(x, p, steps=2),
}
