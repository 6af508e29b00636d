"""Online: networks trained together teach each other."""

from __future__ import annotations

from kdschemes.config.schemes import online as options
from kdschemes.schemes.base import Builders
from kdschemes.schemes.online.mutual import dml

ONLINE: Builders = {options.OnlineDML: dml}
