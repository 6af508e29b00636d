"""Teacher-free distillation: a network trained with labels teaches a new one (Yuan et al. 2020)."""

from __future__ import annotations

from kdschemes.config import Config
from kdschemes.core.distillation import Distillation
from kdschemes.core.frozen import Frozen
from kdschemes.core.types import DataSpec
from kdschemes.schemes.self_distillation.generations import generation_network, taught_by_generations


def tfkd_self(config: Config, data_spec: DataSpec) -> Distillation:
    """Return (1 - alpha) CE + alpha response(teacher -> student), the teacher from the supervised run."""
    return taught_by_generations(
        config, data_spec, {"teacher": Frozen("teacher", generation_network(config, data_spec, 0, 0))}, ["student"], 1
    )
