"""The schemes: who teaches whom. Importing this imports every builder."""

from __future__ import annotations

from collections.abc import Callable

from kdschemes.config import Config
from kdschemes.config import schemes as options
from kdschemes.distillation import Distillation, Task
from kdschemes.schemes import offline, online, self_distillation, supervised
from kdschemes.schemes.networks import with_average
from kdschemes.seeding import seeded
from kdschemes.terms import Transfer

Builder = Callable[[Config, Task], Distillation]

BUILDERS: dict[type, Builder] = {
    options.Supervised: supervised.plain,
    options.LabelSmoothing: supervised.plain,
    options.DeepSupervision: supervised.deep_supervision,
    options.OfflineKD: offline.kd,
    options.OnlineDML: online.dml,
    options.SelfBYOT: self_distillation.byot,
}
"""Who builds the scheme of each class of options; names are in `kdschemes.config.schemes.SCHEMES`."""


def build_scheme(config: Config, task: Task) -> Distillation:
    """Build the scheme that a configuration names, with initial weights that depend on its seeds alone.

    Raises:
        UserError: a model, a checkpoint or a loss that does not fit.
    """
    with seeded(config.seed, "init", "projections"):
        scheme = BUILDERS[type(config.scheme)](config, task)
    if not config.train.gather:
        for term in scheme.terms:
            if isinstance(term, Transfer):
                term.stay_local()
    return with_average(scheme, config.train.ema) if config.train.ema is not None else scheme
