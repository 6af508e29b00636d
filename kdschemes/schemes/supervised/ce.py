"""One network trained with cross-entropy."""

from __future__ import annotations

from kdschemes.config import Config
from kdschemes.core.distillation import Distillation
from kdschemes.core.nodes import Network
from kdschemes.core.types import DataSpec
from kdschemes.schemes.distill import distill
from kdschemes.schemes.networks import student_network


def ce(config: Config, data_spec: DataSpec) -> Distillation:
    """Return one network trained with cross-entropy, with label smoothing as configured."""
    return distill(
        {"student": Network("student", student_network(config, data_spec, "student"))},
        supervised={"student": 1.0},
        edges=[],
        losses=config.losses,
        heads=["student"],
        data_spec=data_spec,
        label_smoothing=config.scheme.label_smoothing,
        label_smoothing_over=config.scheme.label_smoothing_over,
    )
