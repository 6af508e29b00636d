"""Terms: each turns named outputs into one scalar, weighted by a schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdschemes.core.cross_entropy import binary_cross_entropy, cross_entropy
from kdschemes.core.loss import Loss
from kdschemes.core.schedules import Schedule
from kdschemes.core.types import Batch, Output, Progress
from kdschemes.distributed.collectives import gather
from kdschemes.errors import UserError


class Term(nn.Module):
    """A scalar function of the outputs named in `reads`, averaged over the batch.

    `name` describes the edge (`kd/teacher->student`), `target` is the output that learns from it, `weight` is its
    weight schedule. `needs_global_batch`: the value depends on pairs of samples and is therefore computed on the
    micro-batch of all processes.
    """

    needs_global_batch: bool = False

    def __init__(self, name: str, target: str, weight: Schedule) -> None:
        super().__init__()
        self.name = name
        self.target = target
        self.weight = weight

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.target,)

    def stages_read(self, output: str) -> list[str] | None:
        """Return the stages of an output whose features the term reads; None if unknown."""
        return None if output in self.reads else []

    def set_progress(self, progress: Progress) -> None:
        """Receive the training progress before each forward pass."""

    def batches(self, batch: Batch) -> tuple[Batch, ...]:
        """Return the batches that the term averages over: by default only the batch itself."""
        return (batch,)

    def forward(self, outputs: Mapping[str, Output], batch: Batch) -> Tensor:
        """Return the unweighted value."""
        raise NotImplementedError


class Supervise(Term):
    """Cross-entropy of the target's logits with the labels, binary if an image has several.

    `class_weights` are not part of its state.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        target: str,
        weight: Schedule,
        *,
        label_smoothing: float = 0.0,
        label_smoothing_over: Literal["all", "others"] = "all",
    ) -> None:
        super().__init__(f"ce/{target}", target, weight)
        self.label_smoothing = label_smoothing
        self.label_smoothing_over = label_smoothing_over
        self.register_buffer("class_weights", None, persistent=False)

    def stages_read(self, output: str) -> list[str]:
        return []

    def forward(self, outputs: Mapping[str, Output], batch: Batch) -> Tensor:
        if batch.labels.dim() == 2:
            logits, partners = outputs[self.target].logits, batch.partner_labels
            return binary_cross_entropy(logits, batch.labels, partner_labels=partners, mix=batch.mix)
        return cross_entropy(
            outputs[self.target].logits,
            batch.labels,
            label_smoothing=self.label_smoothing,
            label_smoothing_over=self.label_smoothing_over,
            partner_labels=batch.partner_labels,
            mix=batch.mix,
            class_weights=self.class_weights,
        )


class Transfer(Term):
    """One edge of the topology: `source` teaches `target` by `loss`. The source is detached by default.

    `aux_batch` is the batch that the target is computed on and the loss averages over (None: the batch itself). For
    samples unknown to the source (`Output.known`), its logits are the target's own, detached. An empty batch gives 0.
    """

    def __init__(
        self,
        name: str,
        source: str,
        target: str,
        loss: Loss[Any],
        weight: Schedule,
        *,
        detach_source: bool = True,
        aux_batch: str | None = None,
    ) -> None:
        super().__init__(f"{name}/{source}->{target}", target, weight)
        self.aux_batch = aux_batch
        self.source = source
        self.loss = loss
        self.detach_source = detach_source
        self.needs_global_batch = loss.needs_global_batch

    def disable_gather(self) -> None:
        """Compute a loss between samples on each process's own samples only.

        Raises:
            UserError: the loss has a memory bank, which all processes must fill with the same samples.
        """
        if self.loss.has_memory_bank:
            raise UserError(f"{self.name} has a memory bank of all processes' samples: set train.gather_batch=true")
        self.needs_global_batch = False

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.target, self.source)

    def stages_read(self, output: str) -> list[str] | None:
        teaches = self.source == output != self.target
        return self.loss.teacher_stages() if teaches else super().stages_read(output)

    def set_progress(self, progress: Progress) -> None:
        self.loss.set_progress(progress)

    def batches(self, batch: Batch) -> tuple[Batch, ...]:
        return (batch.aux_batch(self.aux_batch),)

    def forward(self, outputs: Mapping[str, Output], batch: Batch) -> Tensor:
        (samples,) = self.batches(batch)
        target, source = outputs[self.target], outputs[self.source]
        if len(samples) == 0:
            return 0.0 * sum((p.sum() for p in self.parameters()), target.logits.sum())
        if self.detach_source:
            source = source.detach()
        if source.known is not None:
            filled = torch.where(source.known[:, None], source.logits, target.logits.detach())
            source = replace(source, logits=filled)
        value = self.loss(
            target, source, samples, partial(gather, total=samples.micro_size) if self.needs_global_batch else _own
        )
        assert isinstance(value, Tensor)
        return value


def _own(local: Tensor) -> Tensor:
    return local
