"""Every head on a split: accuracy, likelihood, calibration, and agreement with the teacher."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import nn

from kdschemes.distillation import Distillation
from kdschemes.distributed import sum_over_processes
from kdschemes.metrics import HeadMetrics
from kdschemes.outputs import Batch


@contextlib.contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode for a block, then each submodule back in the mode that it had."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@torch.no_grad()
def evaluate(
    scheme: Distillation, batches: Iterable[Batch], device: torch.device, heads: Sequence[str] | None = None
) -> dict[str, dict[str, float]]:
    """Return the metrics of `heads` (default: all, and the teacher) over the samples of all processes.

    `batches` are this process's share. The result is the same on every process; training modes are left as they were.
    """
    reference = [scheme.teacher] if scheme.teacher is not None else []
    names = list(heads) if heads is not None else list(dict.fromkeys([*scheme.heads, *reference]))
    metrics = {name: HeadMetrics(device) for name in names}
    with evaluation_mode(scheme):
        for batch in batches:
            outputs = scheme.predict(batch, [*names, *reference])
            teacher = outputs[scheme.teacher].logits if scheme.teacher else None
            for name in names:
                metrics[name].update(outputs[name].logits, batch.labels, teacher)
    for head in metrics.values():
        sum_over_processes(head.sums)
    return {name: head.result() for name, head in metrics.items()}
