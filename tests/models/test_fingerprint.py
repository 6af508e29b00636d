"""Networks that compute different functions get different fingerprints; the same network keeps its own."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from kdschemes.models.fingerprint import fingerprint

WIDTH = 4


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)


class Net(Block):
    def __init__(self, num_classes: int, width: int = 4) -> None:
        super().__init__(width)
        self.head = nn.Linear(width, num_classes)


def of_closure(width: Any) -> Any:
    def build(num_classes: int) -> nn.Module:
        return Net(num_classes, width)

    return build


def of_default(default: int) -> Any:
    def build(num_classes: int, width: int = default) -> nn.Module:
        return Net(num_classes, width)

    return build


def of_global(num_classes: int) -> nn.Module:
    return Net(num_classes, WIDTH)


def of_itself(num_classes: int) -> nn.Module:
    return of_itself(num_classes) if num_classes else Net(num_classes)


def test_what_a_function_refers_to_counts(monkeypatch: Any) -> None:
    makers = [of_closure(4), of_closure(8), of_default(4), of_default(8), of_closure(of_closure(4)), of_global, Net]
    makers += [of_closure(of_closure(8)), partial(Net, width=4), partial(Net, width=8), partial(of_closure(4))]
    makers += [of_closure(torch.zeros(2000)), of_closure(torch.ones(2000)), of_itself, nn.Linear]
    found = [fingerprint(make) for make in makers]
    assert len({*found}) == len(found)
    assert found[:2] == [fingerprint(of_closure(4)), fingerprint(of_closure(8))]
    monkeypatch.setattr(f"{__name__}.WIDTH", 8)
    assert fingerprint(of_global) != found[makers.index(of_global)]
    monkeypatch.setattr(f"{__name__}.Net", Block)
    assert fingerprint(of_closure(4)) != found[0]


def test_layers_and_weights_of_a_module_count() -> None:
    torch.manual_seed(0)
    network = Net(3)
    before = fingerprint(network)
    assert fingerprint(network) == before
    with torch.no_grad():
        network.head.weight[0, 0] += 1.0
    assert fingerprint(network) != before
