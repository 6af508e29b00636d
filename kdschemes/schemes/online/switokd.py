"""SwitOKD: a small and a big network teach each other; the big one pauses while it is too far ahead."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kdschemes.config import Config
from kdschemes.core.distillation import Distillation
from kdschemes.core.nodes import Network
from kdschemes.core.schedules import constant
from kdschemes.core.terms import Term
from kdschemes.core.types import Batch, DataSpec, Output, Outputs
from kdschemes.distributed.collectives import sum_over_processes
from kdschemes.errors import UserError
from kdschemes.models import StagedNetwork
from kdschemes.schemes.distill import Edge, distill
from kdschemes.schemes.networks import student_network


def switokd(config: Config, data_spec: DataSpec) -> Distillation:
    """Return CE of each network, response(big -> student) and response(student -> big).

    Both learn as in mutual learning, but at steps where `Switch.expert` is true, the big network is not updated: its
    terms are computed without effect. The term `learning/big` with weight 0 is 1 where it learns, else 0.

    Raises:
        UserError: the length of `scheme.lr_multipliers` is not two.
    """
    lr_multipliers = config.scheme.lr_multipliers or [1.0, 1.0]
    if len(lr_multipliers) != 2:
        raise UserError(f"scheme.lr_multipliers has {len(lr_multipliers)} entries for 2 networks: give [student, big]")
    big = SwitchedNetwork("big", student_network(config, data_spec, "big", config.scheme.large_model), small="student")
    return distill(
        {"student": Network("student", student_network(config, data_spec, "student")), "big": big},
        supervised={"student": 1.0, "big": 1.0},
        edges=[Edge("big", "student"), Edge("student", "big")],
        losses=config.losses,
        heads=["student", "big"],
        data_spec=data_spec,
        terms=[Learning(big)],
        lr_multipliers=dict(zip(("student", "big"), lr_multipliers, strict=True)),
    )


@dataclass(frozen=True)
class Switch:
    """Mean L1 distances of a step: `gap` between the networks' outputs, `small` and `big` from each to the labels."""

    gap: float
    small: float
    big: float

    @property
    def threshold(self) -> float:
        """The largest allowed gap: small - exp(-big / (small + big)) * big."""
        both = self.small + self.big
        return self.small - math.exp(-self.big / both) * self.big if both > 0.0 else 0.0

    @property
    def expert(self) -> bool:
        """Whether the big network is ahead and the gap exceeds the threshold."""
        return self.gap > self.threshold and self.big < self.small


class SwitchedNetwork(Network):
    """The trained network `name`, whose update is skipped at steps where it is too far ahead of the output `small`.

    The decision at the last micro-batch counts: it includes all samples of the optimizer step, over all processes and
    micro-batches. Batch-norm statistics are updated at every step.
    """

    skips_updates = True

    def __init__(self, name: str, network: StagedNetwork, small: str) -> None:
        super().__init__(name, network)
        self.reads = (small,)
        self._sums: Tensor | None = None

    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        produced = super().forward(batch, outputs)
        if self.training:
            self.skip_update = self._decide(outputs[self.reads[0]], produced[self.provides[0]], batch).expert
        return produced

    @torch.no_grad()
    def _decide(self, small: Output, big: Output, batch: Batch) -> Switch:
        sums = sum_over_processes(distances(small.logits, big.logits, batch.labels))
        self._sums = sums if self._sums is None else self._sums + sums
        gap, of_small, of_big, samples = self._sums.tolist()
        return Switch(gap / samples, of_small / samples, of_big / samples)

    def after_step(self) -> None:
        self._sums = None


class Learning(Term):
    """1 if a switched network learns at this step, else 0: its mean is the fraction of learning steps. Weight 0."""

    def __init__(self, node: SwitchedNetwork) -> None:
        super().__init__(f"learning/{node.provides[0]}", node.provides[0], constant(0.0))
        self._node = [node]

    def forward(self, outputs: Mapping[str, Output], batch: Batch) -> Tensor:
        logits = outputs[self.target].logits
        return torch.full((), 0.0 if self._node[0].skip_update else 1.0, dtype=logits.dtype, device=logits.device)


def distances(small: Tensor, big: Tensor, labels: Tensor) -> Tensor:
    """Return sums over samples of |p_s - p_b|_1, |p_s - y|_1, |p_b - y|_1, and the number of samples; float64.

    p are softmax outputs at temperature 1 and y one-hot labels, so that |p - y|_1 = 2 (1 - p_y).
    """
    p, q = (logits.double().softmax(1) for logits in (small, big))
    from_label = [2.0 * (1.0 - x.gather(1, labels[:, None])).sum() for x in (p, q)]
    return torch.stack([(p - q).abs().sum(), *from_label, p.new_tensor(float(len(labels)))])
