"""No teacher: cross-entropy on the labels, on one network or on every exit of it."""

from __future__ import annotations

from kdschemes.config import Config
from kdschemes.config.schemes import supervised as options
from kdschemes.core.distillation import Distillation
from kdschemes.core.nodes import Ensemble, Network, NetworkWithExits
from kdschemes.core.types import Task
from kdschemes.schemes.base import Builders
from kdschemes.schemes.distill import distill
from kdschemes.schemes.networks import network_with_exits, student_network


def plain(config: Config, task: Task) -> Distillation:
    """Return one network under cross-entropy."""
    return distill(
        {"student": Network("student", student_network(config, task, "student"))},
        supervised={"student": 1.0},
        edges=[],
        losses=config.losses,
        heads=["student"],
        task=task,
        label_smoothing=config.scheme.label_smoothing,
        label_smoothing_over=config.scheme.label_smoothing_over,
    )


def deep_supervision(config: Config, task: Task) -> Distillation:
    """Return one network under cross-entropy on its output and on every exit, with equal weights."""
    student = NetworkWithExits("student", network_with_exits(config, task, "student"))
    return distill(
        {"student": student, "ensemble": Ensemble("ensemble", student.provides)},
        supervised=dict.fromkeys(student.provides, 1.0),
        edges=[],
        losses=config.losses,
        heads=[*student.provides, "ensemble"],
        task=task,
        label_smoothing=config.scheme.label_smoothing,
        label_smoothing_over=config.scheme.label_smoothing_over,
    )


SUPERVISED: Builders = {
    options.Supervised: plain,
    options.LabelSmoothing: plain,
    options.DeepSupervision: deep_supervision,
}
