"""Supervised: no teacher, cross-entropy with the labels."""

from __future__ import annotations

from kdschemes.config.schemes import supervised as options
from kdschemes.schemes.base import Builders
from kdschemes.schemes.supervised.ce import ce
from kdschemes.schemes.supervised.deep_supervision import deep_supervision

SUPERVISED: Builders = {
    options.Supervised: ce,
    options.LabelSmoothing: ce,
    options.DeepSupervision: deep_supervision,
}
