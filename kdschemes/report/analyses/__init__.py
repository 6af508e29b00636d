"""Extra sections of a study's report, under the names that study files list in `analyses`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module

from kdschemes.report.document import Section
from kdschemes.report.groups import Group
from kdschemes.study.spec_keys import ANALYSIS_NAMES

__all__ = ["ANALYSES"]

ANALYSES: dict[str, Callable[[Sequence[Group]], list[Section]]] = {
    name: getattr(import_module(f"{__name__}.{name}"), name) for name in ANALYSIS_NAMES
}
"""The function with the name of its module: from the groups of a study, unfinished runs included, to sections."""
