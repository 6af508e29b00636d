"""What our functions call each reference of the online methods with branches: (inputs, parameters) to the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from kdschemes.core.cross_entropy import cross_entropy
from kdschemes.core.schedules import sigmoid_ramp
from kdschemes.core.types import Progress
from kdschemes.losses.response.kd import kd
from kdschemes.schemes.online.okddip import attended, attention
from kdschemes.schemes.online.one import Gate, gated_mean

Case = dict[str, Any]
Inputs = dict[str, Tensor]
Reference = Callable[[Inputs, Case], Tensor]


def shifted_kd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`kd`, and what the references add to it by adding 1e-7 to each of the teacher's probabilities."""
    q = functional.softmax(teacher / temperature, dim=1)
    log_p = functional.log_softmax(student / temperature, dim=1)
    more = (q + 1e-7) * (q + 1e-7).log() - q * q.log() - 1e-7 * log_p
    return kd(student, teacher, temperature=temperature) + temperature**2 * more.sum(1).mean()


def hard(x: Inputs, names: str) -> Tensor:
    return torch.stack([cross_entropy(x[f"z{k}"], x["y"]) for k in names]).sum()


def one(x: Inputs, p: Case) -> Tensor:
    logits = [x[f"z{k}"] for k in range(3)]
    gate = Gate(x["f"].shape[1], 3).to(x["f"].dtype)
    gate.fc.load_state_dict({"weight": x["W"], "bias": x["b"]})
    weights = gate(torch.stack([x["f"]] * 3, dim=1))
    ensemble = gated_mean(torch.stack(logits, dim=1), weights)
    soft = [shifted_kd(z, ensemble.detach(), float(p["T"])) for z in logits]
    return hard(x, "012") + cross_entropy(ensemble, x["y"]) + p["cw"] * torch.stack(soft).sum()


def okddip(x: Inputs, p: Case) -> Tensor:
    logits = [x[f"z{k}"] for k in range(3)]
    features = torch.stack([x[f"f{k}"] for k in range(3)], dim=1)
    weights = attention(features @ x["Wq"].mT, features @ x["Wk"].mT)
    targets = attended(weights, torch.stack(logits, dim=1))
    soft = [shifted_kd(z, targets[:, a], float(p["T"])) for a, z in enumerate(logits)]
    soft.append(shifted_kd(x["z3"], torch.stack(logits).mean(0), float(p["T"])))
    return hard(x, "0123") + p["cw"] * torch.stack(soft).sum()


def dml(x: Inputs, p: Case) -> Tensor:
    logits = [x[f"z{k}"] for k in range(p["n"])]
    total = hard(x, "012"[: p["n"]])
    for k, z in enumerate(logits):
        others = [other for j, other in enumerate(logits) if j != k]
        targets = others if p["pair"] else [torch.stack(others).mean(0)]
        total = total + torch.stack([shifted_kd(z, target, float(p["T"])) for target in targets]).mean()
    return total


def pcl(x: Inputs, p: Case) -> Tensor:
    """The reference's ramp takes 1 epoch where the paper's takes 80, and runs past its end."""
    epoch = p["epoch"]
    weight = sigmoid_ramp(1.0, 1.0)(Progress(min(epoch, 2 - epoch) * 10, 100, 10))
    total = hard(x, "012") + cross_entropy(x["e"], x["y"])
    for j in range(3):
        z = x[f"z{j}"]
        others = [kd(z, x[f"m{k}"], temperature=float(p["T"])) for k in range(3) if k != j]
        soft = kd(z, x["e"].detach(), temperature=float(p["T"])) + torch.stack(others).mean()
        total = total + weight * soft
    return total


REFERENCES: dict[str, Reference] = {
    "ONE": one,
    "OKDDip": okddip,
    "DML.OKDDip_pair": dml,
    "DML.OKDDip_ensemble": dml,
    "PCL.shaoeric": pcl,
}
