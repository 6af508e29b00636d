"""What the formula of a method is given: configuration, outputs and batch of a step, as numpy where it counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kdschemes.config import Config
from kdschemes.core.distillation import Distillation
from kdschemes.core.types import Batch, Output, Outputs, Progress
from tests.losses import oracles


@dataclass(frozen=True)
class Seen:
    """One step of a scheme: what it was built from, what came out, and what it was shown."""

    config: Config
    scheme: Distillation
    out: Outputs
    batch: Batch
    progress: Progress

    @property
    def labels(self) -> list[int]:
        """The labels of the batch."""
        return [int(label) for label in self.batch.labels]

    def logits(self, name: str) -> oracles.Array:
        """The logits of an output."""
        return array(self.out[name].logits)


Formula = Callable[[Seen], float]
"""The total of a step, from the formula on the method's card, independent of the package."""


def array(x: Tensor) -> oracles.Array:
    """A tensor as float64 numpy."""
    return x.detach().double().numpy()


def last(output: Output) -> tuple[oracles.Array, oracles.Array]:
    """The logits and the deepest feature of an output."""
    return array(output.logits), array(list(output.features.values())[-1])


Inputs = dict[str, Tensor]
Case = dict[str, Any]
Reference = Callable[[Inputs, Case], Tensor]
"""What our code makes of the inputs and parameters of a recorded case in `tests/reference`: a loss or a total."""
