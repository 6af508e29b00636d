"""The previous mini-batch teaches the current one: DLB (Shen et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kdschemes.config import Config
from kdschemes.core.averages import gather_predictions
from kdschemes.core.cross_entropy import cross_entropy
from kdschemes.core.distillation import Distillation
from kdschemes.core.nodes import Node
from kdschemes.core.schedules import Schedule, constant
from kdschemes.core.terms import Supervise
from kdschemes.core.types import Batch, DataSpec, Output, Outputs
from kdschemes.schemes.distill import Edge, distill
from kdschemes.schemes.networks import student_network
from kdschemes.schemes.self_distillation.two_views import NetworkTwice


class LastStep(Node):
    """A network's predictions at the previous optimizer step, looked up by the samples' positions.

    `name` provides the logits of `source` at that step for the samples of the auxiliary batch `previous`, detached.
    Predictions of all processes are stored on each process after the step, for at most `size` samples.
    """

    aux_batches = ("previous",)
    replicated_buffers = ("index", "logits")
    index: Tensor
    logits: Tensor

    def __init__(self, name: str, source: str, size: int, classes: int) -> None:
        super().__init__([name], reads=[source])
        self.output_batches = {name: "previous"}
        self.register_buffer("index", torch.full((size,), -1))
        self.register_buffer("logits", torch.zeros(size, classes))
        self._new: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        if self.training:
            self._new.append(gather_predictions(batch, outputs[self.reads[0]], self.logits.dtype))
        found = batch.aux_batch("previous").index[:, None] == self.index
        return {self.provides[0]: Output(self.logits[found.int().argmax(1)], known=found.any(1))}

    @torch.no_grad()
    def after_step(self) -> None:
        if self._new:
            index, logits = (torch.cat(parts) for parts in zip(*self._new, strict=True))
            self.index.fill_(-1)[: len(index)] = index
            self.logits[: len(index)] = logits
            self._new.clear()


class SuperviseBoth(Supervise):
    """Cross-entropy with the labels of a batch and one of its auxiliary batches, averaged over the samples of both."""

    def __init__(self, target: str, again: str, aux_batch: str, weight: Schedule) -> None:
        super().__init__(target, weight)
        self.again, self.aux_batch = again, aux_batch

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.target, self.again)

    def batches(self, batch: Batch) -> tuple[Batch, ...]:
        return (batch, batch.aux_batch(self.aux_batch))

    def forward(self, outputs: Mapping[str, Output], batch: Batch) -> Tensor:
        both = self.batches(batch)
        partners = [b.partner_labels for b in both if b.partner_labels is not None]
        mixes = [b.mix for b in both if b.mix is not None]
        return cross_entropy(
            torch.cat([outputs[name].logits for name in self.reads]),
            torch.cat([b.labels for b in both]),
            label_smoothing=self.label_smoothing,
            label_smoothing_over=self.label_smoothing_over,
            partner_labels=torch.cat(partners) if partners else None,
            mix=torch.cat(mixes) if mixes else None,
            class_weights=self.class_weights,
        )


def dlb(config: Config, data_spec: DataSpec) -> Distillation:
    """Return CE over the batch and the previous one, and response(previous -> current predictions) on the latter.

    The previous batch is seen in a new view, in a separate forward pass; its previous predictions are from view 0 with
    the weights at that step. The first step has no previous batch and only CE.
    """
    student = NetworkTwice("student", student_network(config, data_spec, "student"), "previous")
    name, again = student.provides
    return distill(
        {"student": student, "past": LastStep("past", name, config.train.batch_size, data_spec.num_classes)},
        supervised={},
        edges=[Edge("past", again)],
        losses=config.losses,
        heads=["student"],
        data_spec=data_spec,
        terms=[SuperviseBoth(name, again, "previous", constant(1.0))],
    )
