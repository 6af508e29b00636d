"""One network and all of its exits trained with cross-entropy."""

from __future__ import annotations

from kdschemes.config import Config
from kdschemes.core.distillation import Distillation
from kdschemes.core.nodes import Ensemble, NetworkWithExits
from kdschemes.core.types import DataSpec
from kdschemes.schemes.distill import distill
from kdschemes.schemes.networks import network_with_exits


def deep_supervision(config: Config, data_spec: DataSpec) -> Distillation:
    """Return one network trained with cross-entropy on its output and on every exit, with equal weights."""
    student = NetworkWithExits("student", network_with_exits(config, data_spec, "student"))
    return distill(
        {"student": student, "ensemble": Ensemble("ensemble", student.provides)},
        supervised=dict.fromkeys(student.provides, 1.0),
        edges=[],
        losses=config.losses,
        heads=[*student.provides, "ensemble"],
        data_spec=data_spec,
        label_smoothing=config.scheme.label_smoothing,
        label_smoothing_over=config.scheme.label_smoothing_over,
    )
