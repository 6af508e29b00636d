"""Offline: frozen teachers teach a student."""

from __future__ import annotations

from kdschemes.config.schemes import offline as options
from kdschemes.schemes.base import Builders
from kdschemes.schemes.offline.kd import kd

OFFLINE: Builders = {options.OfflineKD: kd}
