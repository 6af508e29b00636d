"""What the schemes with exits call each reference: (inputs by name, parameters) to the total of a step.

The references number the outputs from the deepest, z0 and f0, to the shallowest, z3 and f3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdschemes.core.nodes import Node
from kdschemes.core.terms import Transfer
from kdschemes.core.types import Batch, DataSpec, Output, Outputs
from kdschemes.schemes.self_distillation.byot import taught_by_the_deepest
from tests.schemes.cases import START, configure

Case = dict[str, Any]
Reference = Callable[[dict[str, Tensor], Case], Tensor]


class Given(Node):
    """The outputs of a network with three exits, as the reference has them."""

    def __init__(self, x: Mapping[str, Tensor]) -> None:
        super().__init__(["student", "student/exit1", "student/exit2", "student/exit3"])
        self.given = {
            name: Output(x[f"z{k}"], {"exit": x[f"f{k}"]}) for name, k in zip(self.provides, (0, 3, 2, 1), strict=True)
        }

    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        return self.given


def total(x: dict[str, Tensor], *overrides: str) -> Tensor:
    n, classes = x["z0"].shape
    config = configure("scheme=self", *overrides)
    scheme = taught_by_the_deepest(Given(x), config, DataSpec(classes, 1, 2)).to(x["z0"].dtype)
    for term in scheme.terms:
        if isinstance(term, Transfer) and isinstance(adapter := getattr(term.loss, "adapter", None), nn.Linear):
            adapter.weight.data, adapter.bias.data = x["W"], x["b"]
    batch = Batch(torch.zeros(n, 1, 2, 2, dtype=x["z0"].dtype), x["y"], torch.arange(n))
    return scheme(batch, START).total


def authors(x: dict[str, Tensor], p: Case) -> Tensor:
    return total(x, "scheme.variant=authors", f"losses.response.temperature={p['T']}")


def luanyunteng(x: dict[str, Tensor], p: Case) -> Tensor:
    weights = [f"scheme.alpha={p['alpha']}", f"scheme.beta={p['beta']:.10f}"]
    return total(x, "scheme.variant=luanyunteng", f"losses.response.temperature={p['T']}", *weights)


REFERENCES: dict[str, Reference] = {"BYOT.ArchipLab": authors, "BYOT.luanyunteng": luanyunteng}
