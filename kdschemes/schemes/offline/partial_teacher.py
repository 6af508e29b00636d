"""A teacher whose later stages are trained together with the student."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch

from kdschemes.config import Config
from kdschemes.core.distillation import Distillation
from kdschemes.core.nodes import Network, Node, materialize
from kdschemes.core.types import Batch, DataSpec, Output, Outputs
from kdschemes.errors import UserError
from kdschemes.models import StagedNetwork, split
from kdschemes.schemes.distill import Edge, distill
from kdschemes.schemes.networks import student_network, teacher_network
from kdschemes.schemes.offline.teachers import soft_and_hard


def partial_teacher(config: Config, data_spec: DataSpec) -> Distillation:
    """Return CE and response(teacher -> student) for the student, CE and response(student -> teacher) for the teacher.

    The teacher is frozen before the stage `scheme.trained_from`. Feature and relation terms only teach the student.

    Raises:
        UserError: several teachers, an unknown stage, or a teacher that cannot be split there.
    """
    if isinstance(config.teacher.name, list) and len(config.teacher.name) > 1:
        raise UserError(f"method=partial_teacher trains one teacher, not {len(config.teacher.name)}: give one model")
    options, network = config.scheme, teacher_network(config, data_spec, 0)
    alpha, hard = soft_and_hard(config)
    stage = network.stage_names[-1] if options.trained_from == "last" else options.trained_from
    teacher = Network("teacher", network) if stage == "all" else PartlyFrozen("teacher", network, stage)
    back = Edge("student", "teacher", response=options.teacher_alpha, feature=None, relation=None)
    return distill(
        {"teacher": teacher, "student": Network("student", student_network(config, data_spec, "student"))},
        supervised={"student": hard, "teacher": options.teacher_ce_weight},
        edges=[Edge("teacher", "student", response=alpha), back],
        losses=config.losses,
        heads=["student", "teacher"],
        data_spec=data_spec,
        teacher="teacher",
        lr_multipliers={"teacher": options.teacher_lr_multiplier},
    )


class PartlyFrozen(Node):
    """A network that is trained from `stage` on. Earlier stages are frozen and always in evaluation mode."""

    def __init__(self, name: str, network: StagedNetwork, stage: str) -> None:
        super().__init__([name])
        self.trunk, self.branch = split(network, stage)
        self.trunk.requires_grad_(False)
        self._template = [copy.deepcopy(network).to("meta")]
        self.train(self.training)

    def train(self, mode: bool = True) -> PartlyFrozen:
        super().train(mode)
        self.trunk.eval()
        return self

    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        with torch.no_grad():
            stem, features = self.trunk(batch.images)
        logits, deeper = self.branch(stem)
        return {self.provides[0]: Output(logits, {**features, **deeper})}

    def inference_network(self, head: str) -> StagedNetwork:
        return materialize(self._template[0], self.trunk.state_dict() | self.branch.state_dict()).train(self.training)
