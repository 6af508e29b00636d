"""What the tests of the online methods share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

import pytest
import torch
from torch import Tensor, nn

from kdschemes.config.data import Digits
from kdschemes.core.distillation import Distillation
from kdschemes.core.nodes import SharedTrunk
from kdschemes.core.types import Batch, Progress
from kdschemes.data import open_data
from kdschemes.evaluation.cost import head_costs
from kdschemes.models import count_parameters
from kdschemes.schemes.online.one import GatedEnsemble
from tests.schemes.cases import START, batch_for, build, network_of, trained

PEERS = ("peer0", "peer1", "peer2")
LABELS = torch.tensor([3, 0, 9, 3, 5, 1, 7])
RISEN = "losses.response.schedule=constant"
NOT_CUT = dict.fromkeys(("timm/mobilenetv3_small_050", "timm/test_vit"), "trunk and branches")
"""Architectures that have no trunk and branches."""


def sgd(parameters: Iterable[Tensor]) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1)


def step(
    scheme: Distillation, optimizer: torch.optim.Optimizer, micro_batches: Sequence[Batch], phase: int = 0
) -> None:
    """Take the step of one phase as training does."""
    for batch in micro_batches:
        scheme(batch, START, phase).total.backward()
    groups = scheme.parameter_groups()
    for parameter in itertools.chain.from_iterable(groups.get(name, []) for name in scheme.skipped_nodes(phase)):
        parameter.grad = None
    optimizer.step()
    optimizer.zero_grad()


def logits_of(*shape: int, seed: int = 0, scale: float = 3.0, dtype: torch.dtype = torch.float64) -> Tensor:
    return (scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def learners(scheme: Distillation, term: str, batch: Batch) -> set[str]:
    """Return the modules that the gradient of a term reaches: nodes, or the parts of a node with a trunk."""
    scheme.zero_grad()
    outputs = scheme.predict(batch, {name for other in scheme.terms for name in other.reads})
    (found,) = [other for other in scheme.terms if other.name == term]
    found(outputs, batch).backward()
    reached = set()
    for name, node in scheme.nodes.items():
        parts: dict[str, nn.Module] = {name: node}
        if isinstance(node, SharedTrunk):
            branches = zip(node.provides, node.branches, strict=False)
            parts = {"trunk": node.trunk} | dict(branches)
            parts |= {"gate": node.gate} if isinstance(node, GatedEnsemble) else {}
        reached |= {
            part for part, module in parts.items() if any(p.grad is not None and p.grad.any() for p in trained(module))
        }
    return reached


def check_learners(overrides: Sequence[str], expected: dict[str, set[str]]) -> None:
    """Check which modules learn from each of the terms."""
    scheme = build(*overrides).train()
    batch = batch_for(scheme)
    assert {term: learners(scheme, term, batch) for term in expected} == expected


def check_ramp(overrides: Sequence[str], average_weight: float = 1.0) -> None:
    """Check that the soft terms rise over 80 epochs and that CE has weight 1; averages teach with `average_weight`."""
    scheme = build(*overrides)
    batch = batch_for(scheme)
    for epoch, expected in ((0, 0.006737947), (40, 0.286504797), (80, 1.0), (90, 1.0)):
        weights = scheme(batch, Progress(epoch * 10, 3000, 10)).weights
        for term, weight in weights.items():
            part = average_weight if "/ema->" in term else 1.0
            assert weight == pytest.approx(1.0 if term.startswith("ce/") else part * expected), term


def check_heads(overrides: Sequence[str], heads: list[str], extra: Callable[[Distillation], int] = lambda _: 0) -> None:
    """Check the heads and their costs; joint heads have `extra` parameters in addition to those of all branches."""
    scheme = build(*overrides, dtype=torch.float32)
    assert list(scheme.heads) == heads
    assert list(scheme.peers) == [name for name in heads if name.startswith("peer") and "ema" not in name]
    costs = head_costs(scheme, open_data(Digits(), seed=0, device=torch.device("cpu")))
    single = costs["peer0"]
    joint = {"ensemble", "fused"} & set(scheme.heads)
    assert all(costs[head] == single for head in scheme.heads if head not in joint)
    assert single["parameters"] == count_parameters(network_of(scheme, scheme.heads[0]))
    for head in joint:
        count, branch = len(scheme.peers), count_parameters(scheme.nodes["peers"].branches[0])
        more = extra(scheme) + (count_parameters(scheme.nodes["fused"]) if head == "fused" else 0)
        assert costs[head]["parameters"] == single["parameters"] + (count - 1) * branch + more
        assert single["macs"] < costs[head]["macs"] < count * single["macs"]
