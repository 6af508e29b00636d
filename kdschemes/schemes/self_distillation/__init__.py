"""Self: one network teaches itself."""

from __future__ import annotations

from kdschemes.config.schemes import self_exits
from kdschemes.schemes.base import Builders
from kdschemes.schemes.self_distillation.exits import byot

SELF: Builders = {self_exits.SelfBYOT: byot}
