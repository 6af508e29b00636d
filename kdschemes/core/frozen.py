"""Frozen networks, and the interface of caches that replace them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from kdschemes.core.nodes import Node, forward_network
from kdschemes.core.types import Batch, Output, Outputs
from kdschemes.models import StagedNetwork


class PredictionCache(Protocol):
    """Stored outputs that replace a frozen network's forward pass on training batches."""

    wanted: dict[str, tuple[int, ...]]
    """The stored tensors by name, with the shape of one sample."""

    def predict(self, batch: Batch) -> Output:
        """Return the network's output for a batch."""

    def fits(self, other: Any) -> bool:
        """Return whether both store the same network's outputs in the same place."""


class Frozen(Node):
    """A teacher: no gradient, always in evaluation mode, in no state dict and no DDP bucket, but it follows `.to()`.

    `not_moved` are the modules of its network that do not follow. With `bf16` it computes in bfloat16 and returns
    float32. With a `cache`, training batches are read from there. The output for the last batch (by object identity) is
    kept and reused, also by other nodes that share the network. `view` is the auxiliary batch that it sees in training.
    """

    def __init__(self, name: str, network: StagedNetwork, view: str | None = None) -> None:
        super().__init__([name])
        self.view = view
        self.aux_batches = () if view is None else (view,)
        self._hidden = [network.eval().requires_grad_(False)]
        self._shared = _SharedForward()
        self.not_moved: frozenset[nn.Module] = frozenset()
        self.bf16 = False
        self.cache: PredictionCache | None = None

    @property
    def network(self) -> StagedNetwork:
        return self._hidden[0]

    @property
    def preactivations(self) -> bool:
        return self._shared.preactivations

    @property
    def latency_ms(self) -> float | None:
        """The network's latency for one image in milliseconds, once measured."""
        return self._shared.latency_ms

    @latency_ms.setter
    def latency_ms(self, milliseconds: float) -> None:
        self._shared.latency_ms = milliseconds

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        for module in self.network.modules():
            if module not in self.not_moved:
                module._apply(fn, recurse=False)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        shared, batch = self._shared, batch.aux_batch(self.view)
        if shared.batch is not batch or shared.output is None:
            cache = self.cache
            if cache is None or batch.epoch is None:  # in this order: reading the epoch compiles for each epoch anew
                shared.output = self.compute(batch)
            else:
                shared.output = cache.predict(batch)
            shared.batch = batch
        return {self.provides[0]: shared.output}

    @torch.no_grad()
    def compute(self, batch: Batch) -> Output:
        """Return the network's output for a batch, without the cache."""
        if not self.bf16:
            return forward_network(self.network, batch, self.preactivations)
        with torch.autocast(batch.images.device.type, torch.bfloat16):
            return forward_network(self.network, batch, self.preactivations).float()

    def share_forward_with(self, other: Frozen) -> None:
        """Share the network and outputs of `other`, whose network is identical, and free this node's own weights."""
        other._shared.preactivations |= self._shared.preactivations
        self._hidden, self._shared, self.not_moved = other._hidden, other._shared, other.not_moved
        if self.cache is not None and other.cache is not None:
            other.cache.wanted |= self.cache.wanted
        self.cache = other.cache

    def same_network_as(self, other: Frozen) -> bool:
        """Return whether both have identical networks (structure and tensors), and the same cache or none."""
        if self.cache is None or other.cache is None:
            same_cache = self.cache is other.cache
        else:
            same_cache = self.cache.fits(other.cache)
        if not same_cache or self.bf16 != other.bf16 or repr(self.network) != repr(other.network):
            return False
        own, others = self.network.state_dict(), other.network.state_dict()
        return own.keys() == others.keys() and all(torch.equal(own[name], others[name]) for name in own)

    def inference_network(self, head: str) -> StagedNetwork:
        return self.network

    def training_network(self, head: str) -> StagedNetwork:
        return self.network

    def keep_preactivations(self) -> None:
        self._shared.preactivations = True


@dataclass
class _SharedForward:
    """State shared by the frozen nodes of one network: last batch and output, requested outputs, measured latency."""

    batch: Batch | None = None
    output: Output | None = None
    preactivations: bool = False
    latency_ms: float | None = None
