"""The type of scheme builders."""

from __future__ import annotations

from collections.abc import Callable

from kdschemes.config import Config
from kdschemes.config.schemes.base import Method
from kdschemes.core.distillation import Distillation
from kdschemes.core.types import DataSpec

Builder = Callable[[Config, DataSpec], Distillation]
"""Builds the scheme that a configuration describes, called with torch's generator seeded."""

Builders = dict[type[Method], Builder]
"""The builder of the scheme for each options class."""
