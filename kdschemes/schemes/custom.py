"""Custom topologies: a Python recipe builds the scheme."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

from kdschemes.config import Config
from kdschemes.config.schemes.custom import Topology
from kdschemes.core.distillation import Distillation
from kdschemes.core.types import DataSpec
from kdschemes.errors import UserError, first_line
from kdschemes.schemes.base import Builder, Builders


def from_file(config: Config, data_spec: DataSpec) -> Distillation:
    """Return the scheme that the recipe's function `topology(config, task)` builds.

    Raises:
        UserError: the file cannot be imported, has no such function, or the function returns something else.
    """
    scheme: object = _builder(config.scheme.file)(config, data_spec)
    if not isinstance(scheme, Distillation):
        raise UserError(
            f"topology in recipe {config.scheme.file} returned a {type(scheme).__name__}: return a Distillation, as "
            "distill() does"
        )
    return scheme


@cache
def _builder(file: str) -> Builder:
    spec = importlib.util.spec_from_file_location(f"kdschemes_topology_{Path(file).stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"recipe {file} cannot be imported ({type(error).__name__}: {first_line(error)})") from error
    build = getattr(module, "topology", None)
    if not callable(build):
        raise UserError(f"recipe {file} has no function topology(config, task)")
    builder: Builder = build
    return builder


TOPOLOGY: Builders = {Topology: from_file}
