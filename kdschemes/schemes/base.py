"""What a builder of a scheme is."""

from __future__ import annotations

from collections.abc import Callable

from kdschemes.config import Config
from kdschemes.config.schemes.base import Method
from kdschemes.core.distillation import Distillation
from kdschemes.core.types import DataSpec

Builder = Callable[[Config, DataSpec], Distillation]
"""Builds the scheme that a configuration describes, under torch's generator seeded for it."""

Builders = dict[type[Method], Builder]
"""Who builds the scheme of each class of options."""
