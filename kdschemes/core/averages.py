"""The moving average of a network, and the bank of its earlier predictions."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kdschemes.core.nodes import Node
from kdschemes.core.types import Batch, DataSpec, Output, Outputs
from kdschemes.distributed.collectives import gather
from kdschemes.models import StagedNetwork


class Ema(Node):
    """An exponential moving average of another node: `w <- decay * w + (1 - decay) * w_source` after each step.

    It sees the same view as its source and provides the same outputs, renamed by `names`. Batch-norm statistics are
    averaged like weights; counts are copied. It has no gradient, stays in evaluation mode, and is checkpointed. With
    `warm_up`, the decay after step t = 1, 2, ... is min(`decay`, 1 - 1 / (t + 1)) (Tarvainen & Valpola 2017).
    """

    steps: Tensor | None

    def __init__(self, source: Node, names: Mapping[str, str], decay: float, *, warm_up: bool = False) -> None:
        super().__init__([names[output] for output in source.provides])
        self._source = [source]
        self._original = dict(zip(self.provides, source.provides, strict=True))
        self.aux_batches = source.aux_batches
        self.decay = decay
        self.register_buffer("steps", torch.zeros(()) if warm_up else None)
        if warm_up:
            self.replicated_buffers = ("steps",)
        self.average: Node = copy.deepcopy(source).requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Ema:
        super().train(mode)
        self.average.eval()
        return self

    @torch.no_grad()
    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        produced = self.average(batch, outputs)
        return {name: produced[original] for name, original in self._original.items() if original in produced}

    @torch.no_grad()
    def after_step(self) -> None:
        source = self._source[0]
        rate: float | Tensor = 1.0 - self.decay
        if self.steps is not None:
            self.steps += 1
            rate = (1.0 / (self.steps + 1.0)).clamp(min=rate)
        averages = itertools.chain(self.average.parameters(), self.average.buffers())
        values = itertools.chain(source.parameters(), source.buffers())
        for average, value in zip(averages, values, strict=True):
            if average.is_floating_point():
                average.lerp_(value, rate if isinstance(rate, float) else rate.to(average.dtype))
            else:
                average.copy_(value)

    def inference_network(self, head: str) -> StagedNetwork | None:
        return self.average.inference_network(self._original[head])

    def training_network(self, head: str) -> StagedNetwork | None:
        return self.average.training_network(self._original[head])

    def keep_preactivations(self) -> None:
        self.average.keep_preactivations()


class PredictionBank(Node):
    """A network's predictions for each training sample when it was last trained on it, i.e. one epoch earlier.

    `name` provides the stored logits of the batch's samples as constants; `known` marks the samples that have any. In
    training, the predictions of `source` on all processes are stored on each process after the optimizer step. This
    takes 4 bytes per class and training position (`size`), on the device and in checkpoints.

    Args:
        name: the output.
        source: the output whose predictions are stored.
        data_spec: the training samples and their classes.
        prior: logits of samples not seen yet, one row per position, which then count as known; None: unknown.
    """

    replicated_buffers = ("logits", "known")
    logits: Tensor
    known: Tensor

    def __init__(
        self, name: str, source: str, data_spec: DataSpec, prior: Float[Tensor, "positions classes"] | None = None
    ):
        super().__init__([name], reads=[source])
        positions = len(data_spec.labels_of_all())
        self.register_buffer(
            "logits", torch.zeros(positions, data_spec.num_classes) if prior is None else prior.clone()
        )
        self.register_buffer("known", torch.full((positions,), prior is not None))
        self._new: list[tuple[Tensor, Tensor]] = []

    @property
    def size(self) -> int:
        return sum(buffer.numel() * buffer.element_size() for buffer in (self.logits, self.known))

    def describe(self) -> str:
        """Return a one-line description of the bank with its size."""
        rows, classes = self.logits.shape
        return (
            f"bank of {self.reads[0]}'s predictions for {rows} training images and {classes} classes: "
            f"{self.size:,} bytes on the device of each process and in every checkpoint"
        )

    def stages_read(self, output: str) -> list[str]:
        return []

    @torch.no_grad()
    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        if self.training:
            self._new.append(gather_predictions(batch, outputs[self.reads[0]], self.logits.dtype))
        return {self.provides[0]: Output(self.logits[batch.index], known=self.known[batch.index])}

    @torch.no_grad()
    def after_step(self) -> None:
        for index, logits in self._new:
            self.logits[index] = logits
            self.known[index] = True
        self._new.clear()


def gather_predictions(
    batch: Batch, output: Output, dtype: torch.dtype
) -> tuple[Int[Tensor, " all"], Float[Tensor, "all classes"]]:
    """Return the indices and logits of the micro-batch's samples on all processes, the same on each."""
    index = gather(batch.index[:, None], batch.micro_size).squeeze(1)
    return index, gather(output.logits.detach().to(dtype), batch.micro_size)
