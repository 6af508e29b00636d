"""Extra sections of a study's report, under the names that study files list in `analyses`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kdschemes.report.analyses.budgets import budgets
from kdschemes.report.analyses.capacity import capacity
from kdschemes.report.analyses.collaborative import collaborative
from kdschemes.report.analyses.efficiency import efficiency
from kdschemes.report.analyses.fidelity import fidelity
from kdschemes.report.analyses.missing_class import missing_class
from kdschemes.report.analyses.sensitivity import sensitivity
from kdschemes.report.analyses.temperature_limit import temperature_limit
from kdschemes.report.document import Section
from kdschemes.report.groups import Group

__all__ = ["ANALYSES"]

ANALYSES: dict[str, Callable[[Sequence[Group]], list[Section]]] = {
    "temperature_limit": temperature_limit,
    "efficiency": efficiency,
    "fidelity": fidelity,
    "capacity": capacity,
    "sensitivity": sensitivity,
    "budgets": budgets,
    "missing_class": missing_class,
    "collaborative": collaborative,
}
"""Each takes the groups of a study and handles unfinished runs."""
