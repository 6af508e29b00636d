"""Class-wise self-distillation: CS-KD (Yun et al. 2020)."""

from __future__ import annotations

from kdschemes.config import Config
from kdschemes.core.distillation import Distillation
from kdschemes.core.types import DataSpec
from kdschemes.schemes.distill import Edge, distill
from kdschemes.schemes.networks import student_network
from kdschemes.schemes.self_distillation.two_views import NetworkTwice


def cskd(config: Config, data_spec: DataSpec) -> Distillation:
    """Return CE + response(another sample of the same class -> the sample).

    The other sample's forward pass runs after the batch's, in training mode, without gradient.
    """
    student = NetworkTwice("student", student_network(config, data_spec, "student"), "same_class", learns=False)
    name, same_class = student.provides
    return distill(
        {"student": student},
        supervised={name: 1.0},
        edges=[Edge(same_class, name)],
        losses=config.losses,
        heads=["student"],
        data_spec=data_spec,
    )
