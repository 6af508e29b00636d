"""Teacher assistants: TAKD (Mirzadeh et al. 2020)."""

from __future__ import annotations

import dataclasses

from kdschemes.config import Config
from kdschemes.core.distillation import Distillation
from kdschemes.core.types import DataSpec
from kdschemes.schemes.offline.kd import kd


def takd(config: Config, data_spec: DataSpec) -> Distillation:
    """Return `kd` with the last assistant, trained by an earlier run, as the teacher."""
    return kd(dataclasses.replace(config, teacher=dataclasses.replace(config.teacher, weights=None)), data_spec)
