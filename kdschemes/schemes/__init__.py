"""The schemes: who teaches whom. Importing this imports every builder."""

from __future__ import annotations

from kdschemes.config import Config
from kdschemes.core.distillation import Distillation
from kdschemes.core.terms import Transfer
from kdschemes.core.types import DataSpec
from kdschemes.schemes.base import Builder, Builders
from kdschemes.schemes.custom import TOPOLOGY
from kdschemes.schemes.networks import with_average
from kdschemes.schemes.offline import OFFLINE
from kdschemes.schemes.online import ONLINE
from kdschemes.schemes.self_distillation import SELF
from kdschemes.schemes.supervised import SUPERVISED
from kdschemes.seeding import seeded

__all__ = ["BUILDERS", "Builder", "Builders", "build_scheme"]

BUILDERS: Builders = {**SUPERVISED, **OFFLINE, **ONLINE, **SELF, **TOPOLOGY}
"""The builder of the scheme for each options class; names are in `kdschemes.config.schemes.SCHEMES`."""


def build_scheme(config: Config, data_spec: DataSpec) -> Distillation:
    """Build the scheme that a configuration names, with initial weights that depend only on its seeds.

    Raises:
        UserError: a model, a checkpoint, or a loss does not fit.
    """
    with seeded(config.seed, "init", "projections"):
        scheme = BUILDERS[type(config.scheme)](config, data_spec)
    if not config.train.gather_batch:
        for term in scheme.terms:
            if isinstance(term, Transfer):
                term.disable_gather()
    return with_average(scheme, config.train.ema) if config.train.ema is not None else scheme
