"""Custom topologies: a Python recipe builds the scheme."""

from __future__ import annotations

from kdschemes.config import Config
from kdschemes.config.code import load_code
from kdschemes.config.schemes.custom import Topology
from kdschemes.core.distillation import Distillation
from kdschemes.core.types import DataSpec
from kdschemes.errors import UserError
from kdschemes.schemes.base import Builders


def from_file(config: Config, data_spec: DataSpec) -> Distillation:
    """Return the scheme that the recipe's function `topology(config, task)` builds.

    Raises:
        UserError: the user did not allow the file, it cannot be imported, has no such function, or the function returns
            something else.
    """
    options: Topology = config.scheme
    build = getattr(load_code(options.code, "topology", options.digest), "topology", None)
    if not callable(build):
        raise UserError(f"recipe {options.file} has no function topology(config, task)")
    scheme: object = build(config, data_spec)
    if not isinstance(scheme, Distillation):
        raise UserError(
            f"topology in recipe {config.scheme.file} returned a {type(scheme).__name__}: return a Distillation, as "
            "distill() does"
        )
    return scheme


TOPOLOGY: Builders = {Topology: from_file}
