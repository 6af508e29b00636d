"""Custom topologies: a Python recipe builds the scheme."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import ModuleType

from kdschemes.config import Config
from kdschemes.config.schemes.custom import Topology
from kdschemes.config.topologies import read_allowed
from kdschemes.core.distillation import Distillation
from kdschemes.core.types import DataSpec
from kdschemes.errors import UserError, first_line
from kdschemes.schemes.base import Builder, Builders


def from_file(config: Config, data_spec: DataSpec) -> Distillation:
    """Return the scheme that the recipe's function `topology(config, task)` builds.

    Raises:
        UserError: the user did not allow the file, it cannot be imported, has no such function, or the function returns
            something else.
    """
    scheme: object = _builder(config.scheme.file, read_allowed(config.scheme))(config, data_spec)
    if not isinstance(scheme, Distillation):
        raise UserError(
            f"topology in recipe {config.scheme.file} returned a {type(scheme).__name__}: return a Distillation, as "
            "distill() does"
        )
    return scheme


@cache
def _builder(file: str, text: bytes) -> Builder:
    """Run the text that was checked, not whatever the file or a compiled copy of it holds by now."""
    module = ModuleType(f"kdschemes_topology_{Path(file).stem}")
    module.__file__ = file
    try:
        exec(compile(text, file, "exec"), vars(module))
    except (Exception, SystemExit) as error:
        raise UserError(f"recipe {file} cannot be imported ({type(error).__name__}: {first_line(error)})") from error
    build = getattr(module, "topology", None)
    if not callable(build):
        raise UserError(f"recipe {file} has no function topology(config, task)")
    builder: Builder = build
    return builder


TOPOLOGY: Builders = {Topology: from_file}
