"""Further sections of a study's report, by the names that study files give under `analyses`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kdschemes.report.groups import Group
from kdschemes.report.section import Section
from kdschemes.study.analyses.budgets import budgets
from kdschemes.study.analyses.capacity import capacity
from kdschemes.study.analyses.collaborative import collaborative
from kdschemes.study.analyses.efficiency import efficiency
from kdschemes.study.analyses.fidelity import fidelity
from kdschemes.study.analyses.missing_class import missing_class
from kdschemes.study.analyses.sensitivity import sensitivity
from kdschemes.study.analyses.temperature_limit import temperature_limit

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
"""Each takes the groups of a study and copes with runs that are not finished."""
