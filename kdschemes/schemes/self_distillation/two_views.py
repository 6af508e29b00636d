"""One network on two views of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import torch

from kdschemes.core.nodes import Network
from kdschemes.core.types import Batch, Output, Outputs
from kdschemes.models import StagedNetwork


class NetworkTwice(Network):
    """A trained network that is computed on the batch and on one of its auxiliary batches.

    Outputs are `name` and, in training, `NAME/AUX_BATCH`. `joint_forward` runs both in one forward pass with shared
    batch-norm statistics; otherwise the auxiliary batch has a separate forward pass after the batch's, without gradient
    if `learns` is False. An empty auxiliary batch has an empty output.
    """

    def __init__(
        self, name: str, network: StagedNetwork, aux_batch: str, *, joint_forward: bool = False, learns: bool = True
    ) -> None:
        super().__init__(name, network)
        self.provides = (name, f"{name}/{aux_batch}")
        self.aux_batches = (aux_batch,)
        self.output_batches = {self.provides[1]: aux_batch}
        self.joint_forward, self.learns = joint_forward, learns

    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        if not batch.aux_batches:
            return self._predict(batch)
        name, again = self.provides
        other = batch.aux_batch(self.aux_batches[0])
        if self.joint_forward:
            pair = (batch, other)
            images, labels, index = (
                torch.cat([getattr(b, key) for b in pair]) for key in ("images", "labels", "index")
            )
            both = self._predict(Batch(images, labels, index))[name]
            return {name: _rows(both, slice(0, len(batch))), again: _rows(both, slice(len(batch), None))}
        produced = self._predict(batch)[name]
        if len(other) == 0:
            return {name: produced, again: _rows(produced, slice(0, 0))}
        with nullcontext() if self.learns else torch.no_grad():
            return {name: produced, again: self._predict(other)[name]}

    def _predict(self, batch: Batch) -> Outputs:
        return super().forward(batch, {})


def _rows(output: Output, part: slice) -> Output:
    return Output(
        output.logits[part],
        {name: f[part] for name, f in output.features.items()},
        {name: f[part] for name, f in output.preactivations.items()},
    )
