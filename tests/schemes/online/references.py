"""What the recorded references of several online methods share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kdschemes.core.cross_entropy import cross_entropy
from kdschemes.core.types import Batch, Output
from kdschemes.losses.response.kd import kd
from tests.schemes.cases import START, build
from tests.schemes.formulas import Inputs


def hard(x: Inputs, names: str) -> Tensor:
    return torch.stack([cross_entropy(x[f"z{k}"], x["y"]) for k in names]).sum()


def shifted_kd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`kd`, plus what the references add to it by adding 1e-7 to each probability of the teacher."""
    q = functional.softmax(teacher / temperature, dim=1)
    log_p = functional.log_softmax(student / temperature, dim=1)
    more = (q + 1e-7) * (q + 1e-7).log() - q * q.log() - 1e-7 * log_p
    return kd(student, teacher, temperature=temperature) + temperature**2 * more.sum(1).mean()


def total(x: Inputs, *overrides: str) -> Tensor:
    """Return the total that a scheme of as many peers as there are logits makes of them, without its networks."""
    names = sorted(name for name in x if name.startswith("z"))
    scheme = build("scheme=online", "model=convnet", f"scheme.peers={len(names)}", "scheme.views=shared", *overrides)
    outputs = {f"peer{k}": Output(x[name]) for k, name in enumerate(names)}
    batch = Batch(torch.zeros(len(x["y"]), 1, 2, 2), x["y"], torch.arange(len(x["y"])))
    for node in scheme.nodes.values():
        if node.reads:
            outputs |= node(batch, outputs)
    return torch.stack([term.weight(START) * term(outputs, batch) for term in scheme.terms]).sum()
