"""Evaluation of all heads on a split: accuracy, NLL, calibration, agreement with the teacher, predictions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from kdschemes.core.distillation import Distillation
from kdschemes.core.types import Batch
from kdschemes.distributed.collectives import rows_of_all
from kdschemes.evaluation.metrics import HeadMetrics, MultiLabelMetrics
from kdschemes.storage.predictions import HeadPredictions, Predictions


@dataclass(frozen=True)
class Evaluation:
    """The results of heads on a split: their metrics and, if kept, the predictions for every sample in order.

    `predictions` are each sample's most probable class and its probability, by head; `labels` are the true labels. With
    several labels per image, none are kept.
    """

    metrics: dict[str, dict[str, float]]
    predictions: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    labels: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))


@contextlib.contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode within the block, then restore the mode of each submodule."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def evaluate(
    scheme: Distillation, batches: Iterable[Batch], device: torch.device, heads: Sequence[str] | None = None
) -> dict[str, dict[str, float]]:
    """Return the metrics of `heads` (default: all heads and the teacher) over the samples of all processes.

    `batches` are this process's share. The result is the same on every process; training modes are restored.
    """
    return evaluate_together([scheme], batches, device, heads)[0].metrics


@torch.no_grad()
def evaluate_together(
    schemes: Sequence[Distillation],
    batches: Iterable[Batch],
    device: torch.device,
    heads: Sequence[str] | None = None,
    *,
    keep_predictions: bool = False,
) -> list[Evaluation]:
    """Evaluate several schemes batch by batch, so that shared frozen networks run once per batch."""
    evaluators = [_Evaluator(scheme, device, heads, keep_predictions) for scheme in schemes]
    with contextlib.ExitStack() as modes:
        for scheme in schemes:
            modes.enter_context(evaluation_mode(scheme))
        for batch in batches:
            for evaluator in evaluators:
                evaluator.look(batch)
    return [evaluator.result() for evaluator in evaluators]


def predictions_of(found: Mapping[str, Evaluation]) -> Predictions:
    """Return the predictions of evaluations that kept them, by split, in the format for storage."""
    heads: dict[str, dict[str, HeadPredictions]] = {}
    for split, evaluation in found.items():
        for head, (classes, confidence) in evaluation.predictions.items():
            heads.setdefault(head, {})[split] = HeadPredictions(classes.numpy(), confidence.numpy())
    return Predictions({split: evaluation.labels.numpy() for split, evaluation in found.items()}, heads)


class _Evaluator:
    """Collects one scheme's outputs on a split."""

    def __init__(
        self, scheme: Distillation, device: torch.device, heads: Sequence[str] | None, keep_predictions: bool
    ) -> None:
        self.scheme, self.device, self.keep_predictions = scheme, device, keep_predictions
        self.reference = [scheme.teacher] if scheme.teacher is not None else []
        self.names = list(heads) if heads is not None else list(dict.fromkeys([*scheme.heads, *self.reference]))
        self.metrics: dict[str, HeadMetrics] | dict[str, MultiLabelMetrics] = {
            name: HeadMetrics(device) for name in self.names
        }
        self.kept: dict[str, list[Tensor]] = {name: [] for name in self.names}
        self.labels: list[Tensor] = []

    def look(self, batch: Batch) -> None:
        outputs = self.scheme.predict(batch, [*self.names, *self.reference])
        teacher = outputs[self.scheme.teacher].logits if self.scheme.teacher else None
        if batch.labels.dim() == 2 and not isinstance(self.metrics[self.names[0]], MultiLabelMetrics):
            self.metrics, self.keep_predictions = {name: MultiLabelMetrics() for name in self.names}, False
        for name in self.names:
            logits = outputs[name].logits
            self.metrics[name].update(logits, batch.labels, teacher)
            if self.keep_predictions:
                confidence = logits.double().log_softmax(dim=1).amax(dim=1).exp()
                self.kept[name].append(torch.stack([logits.argmax(dim=1).double(), confidence], dim=1))
        if self.keep_predictions:
            self.labels.append(batch.labels.double()[:, None])

    def result(self) -> Evaluation:
        for head in self.metrics.values():
            head.sum_over_processes()
        metrics = {name: head.result() for name, head in self.metrics.items()}
        if not self.keep_predictions:
            return Evaluation(metrics)
        predictions = {name: self._of_all(kept, 2) for name, kept in self.kept.items()}
        return Evaluation(
            metrics,
            {name: (prediction[:, 0].long(), prediction[:, 1].float()) for name, prediction in predictions.items()},
            self._of_all(self.labels, 1)[:, 0].long(),
        )

    def _of_all(self, kept: Sequence[Tensor], columns: int) -> Tensor:
        """Return the rows of all processes in the split's order, on the CPU."""
        own = torch.cat(list(kept)) if kept else torch.zeros(0, columns, dtype=torch.float64, device=self.device)
        return rows_of_all(own).cpu()
