"""What the terms of whole methods give for each reference of a total: (inputs by name, parameters) to the total."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kdschemes.core.types import Batch, Output
from tests.schemes.cases import START, base, build

Case = dict[str, Any]
Reference = Callable[[dict[str, Tensor], Case], Tensor]


def tfkd_self(x: dict[str, Tensor], p: Case) -> Tensor:
    """The total of the method `tfkd_self`, built with these constants, where its networks would give these logits."""
    constants = [f"losses.response.temperature={p['T']}", f"losses.response.weight={p['m']}"]
    scheme = build(*base("self", "tfkd_self", "convnet"), f"scheme.alpha={p['alpha']}", *constants)
    outputs = {"student": Output(x["s"]), "teacher": Output(x["t"])}
    batch = Batch(torch.zeros(len(x["y"]), 1, 8, 8), x["y"], torch.arange(len(x["y"])))
    return torch.stack([term.weight(START) * term(outputs, batch) for term in scheme.terms]).sum()


REFERENCES: dict[str, Reference] = {"TF-KD_self": tfkd_self}
"""Taken through the method itself, where `references_response` takes it through the loss."""
