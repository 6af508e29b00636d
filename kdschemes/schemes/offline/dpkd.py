"""DP-KD: a trained student continues learning, for each sample from the most confident network."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from kdschemes.config import Config
from kdschemes.core.distillation import Distillation
from kdschemes.core.frozen import Frozen
from kdschemes.core.nodes import Network, Node
from kdschemes.core.precision import full_precision
from kdschemes.core.types import Batch, DataSpec, Output, Outputs
from kdschemes.schemes.distill import distill
from kdschemes.schemes.networks import student_network
from kdschemes.schemes.offline.teachers import build_teachers, soft_and_hard


def dpkd(config: Config, data_spec: DataSpec) -> Distillation:
    """Return (1 - alpha) CE + alpha response(target -> student).

    Each sample's target is the output of the most confident among the teachers and `start`, a frozen copy of the
    initial student, rebuilt from `model.checkpoint` when the run resumes. Feature and relation terms come from each
    teacher.
    """
    teachers = build_teachers(config, data_spec)
    network = student_network(config, data_spec, "student")
    start = Frozen("start", copy.deepcopy(network))
    alpha, hard = soft_and_hard(config)
    nodes: dict[str, Node] = {
        **teachers.nodes,
        "start": start,
        "target": MostConfident("target", ["start", *teachers.names], config.scheme.confidence),
        "student": Network("student", network),
    }
    return distill(
        nodes,
        supervised={"student": hard},
        edges=teachers.edges("target", alpha),
        losses=config.losses,
        heads=["student", "start"],
        data_spec=data_spec,
        teacher="teacher",
    )


class MostConfident(Node):
    """For each sample, the logits of the most confident of several outputs (ties: the first); no features."""

    def __init__(self, name: str, members: Sequence[str], by: Literal["supervised", "max_probability"]) -> None:
        super().__init__([name], reads=members)
        self.by = by

    def stages_read(self, output: str) -> list[str]:
        return []

    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        logits = torch.stack([outputs[member].logits for member in self.reads])
        chosen = most_confident(logits, batch.labels, self.by)
        return {self.provides[0]: Output(logits[chosen, torch.arange(len(chosen), device=chosen.device)])}


@full_precision
def most_confident(
    logits: Float[Tensor, "k n c"], labels: Int[Tensor, " n"], by: Literal["supervised", "max_probability"]
) -> Int[Tensor, " n"]:
    r"""Return the index of the most confident of K networks for each sample (ties: the first).

    Roth et al. 2024, "Fantastic Gains and Where to Find Them". Confidence is the probability of the label
    (`supervised`) or the highest probability (`max_probability`), both without temperature.

    Args:
        logits: of K networks.
        labels: class indices, only used by `supervised`.
        by: the definition of confidence.
    """
    log_p = functional.log_softmax(logits, dim=2)
    if by == "supervised":
        return log_p.gather(2, labels.expand(len(logits), -1)[..., None]).squeeze(2).argmax(dim=0)
    return log_p.amax(dim=2).argmax(dim=0)
