"""What the tests of the self-distillation methods share."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import torch

from kdschemes.config.data import Digits
from kdschemes.core.distillation import Distillation
from kdschemes.core.terms import Term
from kdschemes.core.types import Batch, Outputs, Progress
from kdschemes.data import open_data
from kdschemes.schemes import build_scheme
from tests.schemes.cases import DATA_SPEC, configure, in_double, network_of


def term_of(scheme: Distillation, name: str) -> Term:
    (term,) = (term for term in scheme.terms if term.name == name)
    assert isinstance(term, Term)
    return term


def reached(scheme: Distillation, name: str, batch: Batch) -> set[str]:
    """Return the parameters that the gradient of one term reaches."""
    term = term_of(scheme, name)
    scheme.zero_grad()
    term(scheme.predict(batch, term.reads), batch).backward()
    return {name for name, p in scheme.named_parameters() if p.grad is not None and p.grad.any()}


def any_begins(names: Iterable[str], start: str) -> bool:
    return any(name.startswith(start) for name in names)


def outputs_of(scheme: Distillation, batch: Batch) -> Outputs:
    return scheme.predict(batch, {name for node in scheme.nodes.values() for name in node.provides})


def forward_passes(scheme: Distillation) -> int:
    """Return how often the student has run in training mode, as its batch norm counts."""
    return int(network_of(scheme, "student").bn1.num_batches_tracked)


def training_steps(
    *overrides: str, epochs: int, batch_size: int = 50, grad_accum_steps: int = 1
) -> Iterator[tuple[Distillation, Batch, Progress]]:
    """Train on 126 digits and yield the scheme, batch and progress of each forward pass before it."""
    data = open_data(Digits(val_fraction=0.9), seed=0, device=torch.device("cpu"))
    data_spec = dataclasses.replace(DATA_SPEC, train_labels=data.train_labels)
    scheme = build_scheme(configure(*overrides), data_spec).double().train()
    optimizer = torch.optim.SGD([p for p in scheme.parameters() if p.requires_grad], lr=0.05)
    count, step = data.steps_per_epoch(batch_size=batch_size, drop_last=False), 0
    for epoch in range(epochs):
        steps = data.train_steps(
            epoch,
            batch_size=batch_size,
            grad_accum_steps=grad_accum_steps,
            rank=0,
            world=1,
            drop_last=False,
            aux_batches=scheme.aux_batches,
        )
        for micro_batches in steps:
            progress = Progress(step, count * epochs, count)
            for batch in map(in_double, micro_batches):
                yield scheme, batch, progress
                scheme(batch, progress).total.backward()
            optimizer.step()
            optimizer.zero_grad()
            scheme.after_step()
            step += 1
