"""One network on two views of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import torch

from kdschemes.core.nodes import Network
from kdschemes.core.types import Batch, Output, Outputs
from kdschemes.models import StagedNetwork


class NetworkTwice(Network):
    """A trained network that answers, beside the batch, one of its companions.

    Outputs are `name` and, in training, `NAME/COMPANION`. `together` runs both in one forward pass, with one set of
    batch norm's statistics; else the companion follows the batch in a pass of its own, from which, without `learns`,
    no gradient comes. Of a companion without samples the answer is empty.
    """

    def __init__(
        self, name: str, network: StagedNetwork, companion: str, *, together: bool = False, learns: bool = True
    ) -> None:
        super().__init__(name, network)
        self.provides = (name, f"{name}/{companion}")
        self.companions = (companion,)
        self.samples = {self.provides[1]: companion}
        self.together, self.learns = together, learns

    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        if not batch.companions:
            return self._answers(batch)
        name, again = self.provides
        other = batch.companion(self.companions[0])
        if self.together:
            pair = (batch, other)
            images, labels, index = (
                torch.cat([getattr(b, key) for b in pair]) for key in ("images", "labels", "index")
            )
            both = self._answers(Batch(images, labels, index))[name]
            return {name: _rows(both, slice(0, len(batch))), again: _rows(both, slice(len(batch), None))}
        answer = self._answers(batch)[name]
        if len(other) == 0:
            return {name: answer, again: _rows(answer, slice(0, 0))}
        with nullcontext() if self.learns else torch.no_grad():
            return {name: answer, again: self._answers(other)[name]}

    def _answers(self, batch: Batch) -> Outputs:
        return super().forward(batch, {})


def _rows(output: Output, part: slice) -> Output:
    return Output(
        output.logits[part],
        {name: f[part] for name, f in output.features.items()},
        {name: f[part] for name, f in output.preactivations.items()},
    )
