"""Nodes: who produces outputs. Each maps a batch, and the outputs so far, to one or more named outputs."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from kdschemes.losses.modules import Loss
from kdschemes.models import Branch, ExitNetwork, StagedNetwork, Trunk
from kdschemes.outputs import Batch, Output, Outputs


class Node(nn.Module):
    """Produces the outputs named in `provides`, from the batch and the outputs named in `reads`."""

    def __init__(self, provides: Sequence[str], reads: Sequence[str] = ()) -> None:
        super().__init__()
        self.provides = tuple(provides)
        self.reads = tuple(reads)

    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        """Return this node's outputs."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Follow the optimizer's step (a moving average, a snapshot)."""

    def plain_network(self, head: str) -> StagedNetwork | None:
        """Return the network that gives `head` at inference, or None where it is not one plain network."""
        return None

    def live_network(self, head: str) -> StagedNetwork | None:
        """Return the very network that gives `head` in training, or None where it is not one network by itself."""
        return None

    def keep_preactivations(self) -> None:
        """Give `Output.preactivations` from now on, where there are any."""


class Network(Node):
    """A trained network; its output is called `name`."""

    def __init__(self, name: str, network: StagedNetwork) -> None:
        super().__init__([name])
        self.network = network
        self.preactivations = False

    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        return {self.provides[0]: _answer(self.network, batch, self.preactivations)}

    def plain_network(self, head: str) -> StagedNetwork:
        return self.network

    def live_network(self, head: str) -> StagedNetwork:
        return self.network

    def keep_preactivations(self) -> None:
        self.preactivations = True


class NetworkWithExits(Node):
    """A trained network `name` with exits `name/exit1` (shallowest) to `name/exitK`.

    An exit's only feature is called `exit`: the map that it classifies.
    """

    def __init__(self, name: str, network: ExitNetwork) -> None:
        super().__init__([name, *(f"{name}/{exit_name}" for exit_name in network.exit_stages)])
        self.network = network
        self.preactivations = False

    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        name = self.provides[0]
        produced = {name: _answer(self.network.network, batch, self.preactivations)}
        exits = self.network.classify_exits(produced[name].features)
        for exit_name, (exit_logits, exit_feature) in exits.items():
            produced[f"{name}/{exit_name}"] = Output(exit_logits, {"exit": exit_feature})
        return produced

    def plain_network(self, head: str) -> StagedNetwork | None:
        return self.network.network if head == self.provides[0] else None

    def live_network(self, head: str) -> StagedNetwork | None:
        return self.plain_network(head)

    def keep_preactivations(self) -> None:
        self.preactivations = True


class LossHead(Node):
    """The further output that a loss gives rise to, from the features of the student that it teaches.

    The loss itself, and so its projections, belong to the term that holds it; `producer` is the student's node.
    """

    def __init__(self, source: str, loss: Loss[Any], producer: Node) -> None:
        assert loss.head is not None
        super().__init__([f"{source}/{loss.head}"], reads=[source])
        self._loss = [loss]
        self._producer = [producer]

    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        return {self.provides[0]: Output(self._loss[0].classify(outputs[self.reads[0]].features))}

    def plain_network(self, head: str) -> StagedNetwork | None:
        network = self._producer[0].plain_network(self.reads[0])
        return None if network is None else self._loss[0].recombined(network)


class SharedStem(Node):
    """One trained trunk, a branch a peer. The trunk learns from every peer's terms: its gradient is their sum."""

    def __init__(self, names: Sequence[str], trunk: Trunk, branches: Sequence[Branch], template: StagedNetwork) -> None:
        super().__init__(names)
        self.trunk = trunk
        self.branches = nn.ModuleList(branches)
        self._template = [template]

    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        stem, features = self.trunk(batch.images)
        produced = {}
        for name, branch in zip(self.provides, self.branches, strict=True):
            logits, deeper = branch(stem)
            produced[name] = Output(logits, {**features, **deeper})
        return produced

    def plain_network(self, head: str) -> StagedNetwork:
        network = copy.deepcopy(self._template[0])
        branch = self.branches[self.provides.index(head)]
        network.load_plain_state(self.trunk.state_dict() | branch.state_dict())
        return network.to(next(branch.parameters()).device)


class Frozen(Node):
    """A teacher: no gradient, always in evaluation mode, in no state dict and no DDP bucket, but it follows `.to()`."""

    def __init__(self, name: str, network: StagedNetwork) -> None:
        super().__init__([name])
        self._hidden = [network.eval().requires_grad_(False)]
        self.preactivations = False

    @property
    def network(self) -> StagedNetwork:
        """The frozen network."""
        return self._hidden[0]

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        self.network._apply(fn)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        return {self.provides[0]: _answer(self.network, batch, self.preactivations)}

    def plain_network(self, head: str) -> StagedNetwork:
        return self.network

    def live_network(self, head: str) -> StagedNetwork:
        return self.network

    def keep_preactivations(self) -> None:
        self.preactivations = True


class Ema(Node):
    """A moving average of another node's network: `w <- decay * w + (1 - decay) * w_source` after each step.

    Buffers (batch-norm statistics) are copied. It has no gradient, stays in evaluation mode and is checkpointed.
    """

    def __init__(self, name: str, source: Network | NetworkWithExits, decay: float) -> None:
        super().__init__([name])
        network = source.network.network if isinstance(source, NetworkWithExits) else source.network
        self._source = [network]
        self.decay = decay
        self.network: StagedNetwork = copy.deepcopy(network).requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Ema:
        super().train(mode)
        self.network.eval()
        return self

    @torch.no_grad()
    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        logits, features = self.network.forward_stages(batch.images)
        return {self.provides[0]: Output(logits, features)}

    @torch.no_grad()
    def after_step(self) -> None:
        source = self._source[0]
        for average, weight in zip(self.network.parameters(), source.parameters(), strict=True):
            average.lerp_(weight, 1.0 - self.decay)
        for buffer, value in zip(self.network.buffers(), source.buffers(), strict=True):
            buffer.copy_(value)

    def plain_network(self, head: str) -> StagedNetwork:
        return self.network

    def live_network(self, head: str) -> StagedNetwork:
        return self.network


class Ensemble(Node):
    """The weighted mean of the logits of other outputs, in float32 at least; it has no features."""

    def __init__(self, name: str, members: Sequence[str], weights: Sequence[float] | None = None) -> None:
        super().__init__([name], reads=members)
        weights = weights if weights is not None else [1.0] * len(members)
        self.weights = tuple(weight / sum(weights) for weight in weights)

    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        members = torch.stack([outputs[member].logits for member in self.reads])
        members = members.to(torch.promote_types(members.dtype, torch.float32))
        return {self.provides[0]: Output((members.new_tensor(self.weights)[:, None, None] * members).sum(0))}


def _answer(network: StagedNetwork, batch: Batch, preactivations: bool) -> Output:
    if preactivations:
        return Output(*network.forward_preactivations(batch.images))
    return Output(*network.forward_stages(batch.images))
