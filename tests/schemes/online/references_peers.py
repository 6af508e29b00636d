"""What our online methods make of each reference's logits: (inputs by name, parameters) to the total of the peers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kdschemes.core.types import Batch, Output
from kdschemes.losses.response.kd import kd
from kdschemes.schemes.online.kdcl import minlogit
from tests.schemes.cases import START, build

Case = dict[str, Any]
Inputs = dict[str, Tensor]
Reference = Callable[[Inputs, Case], Tensor]


def total(x: Inputs, *overrides: str) -> Tensor:
    """Return what a scheme of as many peers as there are logits adds up of them, its networks left out."""
    names = sorted(name for name in x if name.startswith("z"))
    scheme = build("scheme=online", "model=convnet", f"scheme.peers={len(names)}", "scheme.views=shared", *overrides)
    outputs = {f"peer{k}": Output(x[name]) for k, name in enumerate(names)}
    batch = Batch(torch.zeros(len(x["y"]), 1, 2, 2), x["y"], torch.arange(len(x["y"])))
    for node in scheme.nodes.values():
        if node.reads:
            outputs |= node(batch, outputs)
    return torch.stack([term.weight(START) * term(outputs, batch) for term in scheme.terms]).sum()


def of_the_mean(x: Inputs, p: Case) -> Tensor:
    """The reference weighs CE by 1 - alpha and KD by alpha, here 1/2 each."""
    assert p["alpha"] == 0.5
    return 0.5 * total(x, "method=codistillation", f"losses.response.temperature={p['T']}")


def least_margin(x: Inputs, p: Case) -> Tensor:
    """The reference's target is no constant."""
    peers = [x[f"z{k}"] for k in range(4)]
    target = minlogit(torch.stack(peers), x["y"])
    return torch.stack([kd(z, target, temperature=float(p["T"]), reduction="mean") for z in peers]).sum()


REFERENCES: dict[str, Reference] = {
    "DML.chxy95": lambda x, p: total(x, "method=dml"),
    "DML.KDZoo": lambda x, p: kd(x["z0"], x["z1"], temperature=float(p["T"])),
    "KDCL_mean.shaoeric": of_the_mean,
    "KDCL_minlogit": least_margin,
}
