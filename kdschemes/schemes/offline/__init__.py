"""Offline: frozen teachers teach a student."""

from __future__ import annotations

from kdschemes.config.schemes import offline as options
from kdschemes.schemes.base import Builders
from kdschemes.schemes.offline.camkd import camkd
from kdschemes.schemes.offline.dpkd import dpkd
from kdschemes.schemes.offline.kd import kd
from kdschemes.schemes.offline.partial_teacher import partial_teacher
from kdschemes.schemes.offline.takd import takd

OFFLINE: Builders = {
    options.OfflineKD: kd,
    options.OfflineTAKD: takd,
    options.OfflineCAMKD: camkd,
    options.OfflinePartialTeacher: partial_teacher,
    options.OfflineDPKD: dpkd,
}
