"""The stored predictions of finished runs, by group and seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kdschemes.errors import UserError
from kdschemes.report.groups import Group
from kdschemes.storage.predictions import Predictions, read_predictions

NOT_THERE = "Not available: no run has `predictions.safetensors`, which runs of this version write when they finish."


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Predictions on the test set by group's label and seed; `notes` say what is damaged or missing."""

    of: Mapping[str, Mapping[int, Predictions]]
    notes: Sequence[str]

    def with_head(self, group: Group, head: str) -> dict[int, Predictions]:
        """Return a group's predictions that include a head's for the test set."""
        found = self.of.get(group.label, {})
        return {seed: one for seed, one in found.items() if "test" in one.heads.get(head, {}) and "test" in one.labels}


def read_stored(groups: Sequence[Group]) -> Stored:
    """Read the predictions of all finished runs of groups."""
    stored: dict[str, dict[int, Predictions]] = {}
    notes = []
    for group in groups:
        for member in group.finished:
            try:
                found = read_predictions(member.folder)
            except UserError as error:
                notes.append(f"{error}.")
                continue
            if found is not None:
                stored.setdefault(group.label, {})[member.row.entry.seed] = found
    without = [group.label for group in groups if group.finished and group.label not in stored]
    if not stored:
        notes.insert(0, NOT_THERE)
    elif without:
        notes.append(f"Left out, without stored predictions: {', '.join(without)}.")
    return Stored(of=stored, notes=notes)
