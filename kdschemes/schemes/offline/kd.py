"""Frozen teachers teach a student; the last of a chain of assistants does."""

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

    `scheme.ce_weight` is CE's weight where it is not 1 - alpha. Several teachers answer by the weighted mean of their
    logits; each one's features teach with its own weight. Without a response loss there is nothing to weigh CE
    against, and its weight is 1.
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
