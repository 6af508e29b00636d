"""KD: one or more frozen teachers teach a student."""

from __future__ import annotations

from kdschemes.config import Config
from kdschemes.core.distillation import Distillation
from kdschemes.core.nodes import Network, Node
from kdschemes.core.types import DataSpec
from kdschemes.schemes.distill import distill
from kdschemes.schemes.networks import student_network
from kdschemes.schemes.offline.teachers import build_teachers, soft_and_hard


def kd(config: Config, data_spec: DataSpec) -> Distillation:
    """Return (1 - alpha) CE + alpha response(teacher -> student), and feature and relation terms from each teacher.

    `scheme.ce_weight`, if set, replaces CE's weight 1 - alpha. The response of several teachers is the weighted mean of
    their logits; each teacher's features teach with its own weight. Without a response loss, CE has weight 1.
    """
    teachers = build_teachers(config, data_spec)
    student: dict[str, Node] = {"student": Network("student", student_network(config, data_spec, "student"))}
    alpha, hard = soft_and_hard(config)
    return distill(
        {**teachers.nodes, **student},
        supervised={"student": hard},
        edges=teachers.edges("teacher", alpha),
        losses=config.losses,
        heads=["student"],
        data_spec=data_spec,
        teacher="teacher",
    )
