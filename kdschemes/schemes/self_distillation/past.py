"""Self: what a network was, or answered, before teaches it now."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from kdschemes.config import Config
from kdschemes.distillation import Distillation, Edge, Task, distill
from kdschemes.losses.response import cross_entropy
from kdschemes.nodes import Ema, Memory, Network, Node, answers_of_all
from kdschemes.outputs import Batch, Output, Outputs, Progress
from kdschemes.schedules import Schedule, constant
from kdschemes.schemes.networks import student_network
from kdschemes.schemes.self_distillation.views import NetworkTwice
from kdschemes.terms import Supervise, Term

CERTAIN = 100.0
"""The logit of a class without doubt among others of 0: the others' probability, e^-100, rounds to nothing."""


class LastStep(Node):
    """What a network answered at the optimizer step before, found again by the samples' positions.

    `name` holds the logits that `source` had then for the samples of the companion `previous`, constants. Answers are
    remembered after the step, those of all processes on each process, `size` samples at most.
    """

    companions = ("previous",)
    alike = ("index", "logits")
    index: Tensor
    logits: Tensor

    def __init__(self, name: str, source: str, size: int, classes: int) -> None:
        super().__init__([name], reads=[source])
        self.samples = {name: "previous"}
        self.register_buffer("index", torch.full((size,), -1))
        self.register_buffer("logits", torch.zeros(size, classes))
        self._new: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        if self.training:
            self._new.append(answers_of_all(batch, outputs[self.reads[0]], self.logits.dtype))
        found = batch.companion("previous").index[:, None] == self.index
        return {self.provides[0]: Output(self.logits[found.int().argmax(1)], known=found.any(1))}

    @torch.no_grad()
    def after_step(self) -> None:
        if self._new:
            index, logits = (torch.cat(parts) for parts in zip(*self._new, strict=True))
            self.index.fill_(-1)[: len(index)] = index
            self.logits[: len(index)] = logits
            self._new.clear()


class SuperviseBoth(Term):
    """Cross-entropy on the labels of a batch and of one of its companions, a mean over the samples of both."""

    def __init__(self, target: str, again: str, companion: str, weight: Schedule) -> None:
        super().__init__(f"ce/{target}", target, weight)
        self.again, self.companion = again, companion

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.target, self.again)

    def batches(self, batch: Batch) -> tuple[Batch, ...]:
        return (batch, batch.companion(self.companion))

    def forward(self, outputs: Mapping[str, Output], batch: Batch) -> Tensor:
        both = self.batches(batch)
        partners = [b.partner_labels for b in both if b.partner_labels is not None]
        mixes = [b.mix for b in both if b.mix is not None]
        return cross_entropy(
            torch.cat([outputs[name].logits for name in self.reads]),
            torch.cat([b.labels for b in both]),
            partner_labels=torch.cat(partners) if partners else None,
            mix=torch.cat(mixes) if mixes else None,
        )


def growing(last: float) -> Schedule:
    """Return a weight that grows each epoch by an equal step and is `last` in the last one."""

    def weight(progress: Progress) -> float:
        epoch = progress.step // progress.steps_per_epoch
        return last * (epoch + 1) * progress.steps_per_epoch / progress.total_steps

    return weight


def pskd(config: Config, task: Task) -> Distillation:
    """Return (1 - a) CE + a response(the epoch before -> now), a growing from epoch to epoch up to `scheme.alpha`.

    The past is what the network answered in training, in that epoch's view. A sample not seen yet is answered by its
    label, so that the first epoch learns from labels alone. Without a response loss CE has weight 1.
    """
    assert task.train_labels is not None, "a memory of predictions needs the training samples"
    labels = functional.one_hot(task.train_labels.cpu().clamp(min=0), task.num_classes)
    scheme = distill(
        {
            "student": Network("student", student_network(config, task, "student")),
            "past": Memory("past", "student", task, prior=CERTAIN * labels.float()),
        },
        supervised={"student": 1.0},
        edges=[Edge("past", "student")],
        losses=config.losses,
        heads=["student"],
        task=task,
    )
    softened = any(kind == "response" for kind, _ in config.losses.chosen())
    alpha = growing(config.scheme.alpha if softened else 0.0)
    for term in scheme.terms:
        assert isinstance(term, Term)
        share = _rest(alpha) if isinstance(term, Supervise) else alpha
        term.weight = _product(term.weight, share)
    return scheme


def dlb(config: Config, task: Task) -> Distillation:
    """Return CE over the batch and the one before, and response(its answers then -> its answers now) on the latter.

    The batch before is seen in another view, in a forward pass of its own; its answers then are those of view 0, by the
    weights of then. The first step has no batch before: CE alone.
    """
    student = NetworkTwice("student", student_network(config, task, "student"), "previous")
    name, again = student.provides
    return distill(
        {"student": student, "past": LastStep("past", name, config.train.batch_size, task.num_classes)},
        supervised={},
        edges=[Edge("past", again)],
        losses=config.losses,
        heads=["student"],
        task=task,
        terms=[SuperviseBoth(name, again, "previous", constant(1.0))],
    )


def ema(config: Config, task: Task) -> Distillation:
    """Return CE + response(moving average -> student); the average is the reported head."""
    options = config.scheme
    network = student_network(config, task, "student")
    seen = Network("student", network, "view1" if options.view == "own" else None)
    return distill(
        {
            "student": Network("student", network),
            "average": Ema(seen, {"student": "average"}, options.decay, warm_up=options.warm_up),
        },
        supervised={"student": 1.0},
        edges=[Edge("average", "student")],
        losses=config.losses,
        heads=["average", "student"],
        task=task,
    )


def _rest(share: Schedule) -> Schedule:
    return lambda progress: 1.0 - share(progress)


def _product(first: Schedule, second: Schedule) -> Schedule:
    return lambda progress: first(progress) * second(progress)
