"""Numbers of papers that a study file puts beside its own: the key `published`."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from kdschemes.cards.read import papers
from kdschemes.config.naming import in_line
from kdschemes.errors import UserError, nearest, shown, unknown

METRICS = ("errors", "error_percent", "top1", "agreement")
"""What may be published: the number and the percentage of wrong test images, the percentage of correct ones, and of
those to which the student and its teacher give the same class."""

KEYS = ("paper", "metric", "values", "differs")


@dataclass(frozen=True, kw_only=True)
class Published:
    """Numbers of one paper by the labels of points and the names of prerequisites.

    `paper` is a key of `papers.bib`, `metric` one of `METRICS`; `differs` says in sentences how our runs differ from
    the paper's.
    """

    paper: str
    metric: str
    values: Mapping[str, float]
    differs: tuple[str, ...] = ()


def read_published(tree: Any) -> tuple[Published, ...]:
    """Return the numbers in a study file's `published`: one paper's, or a list of several.

    Raises:
        UserError: an unknown key, paper or metric; a value that is not a number.
    """
    if tree is None:
        return ()
    return tuple(map(_read, tree if isinstance(tree, list) else [tree]))


def check_published(published: Collection[Published], labels: Collection[str]) -> None:
    """Raise a UserError if a value is for none of the labels."""
    for label in (label for each in published for label in each.values):
        if label not in labels:
            raise UserError(
                f"published.values: '{shown(label)}' is neither a point nor a prerequisite of the study"
                f"{nearest(label, labels)} (there are {len(labels)}: kdschemes study run --dry-run lists them)"
            )


def _read(tree: Any) -> Published:
    if not isinstance(tree, Mapping):
        raise UserError(f"published must hold {', '.join(KEYS)}, or be a list of such, not {_shown(tree)}")
    for key in tree:
        if key not in KEYS:
            raise unknown("key of published", str(key), KEYS)
    paper, metric, values = (tree.get(key) for key in KEYS[:3])
    if paper not in papers():
        raise UserError(
            f"published.paper must be a key of kdschemes/cards/papers.bib, not {_shown(paper)}"
            f"{nearest(str(paper), papers())}"
        )
    if metric not in METRICS:
        raise unknown("published.metric", str(metric), METRICS)
    if not isinstance(values, Mapping) or not values:
        raise UserError(f"published.values must give numbers by the labels of points, not {_shown(values)}")
    for label, value in values.items():
        if type(value) not in (int, float) or not math.isfinite(value):
            raise UserError(f"published.values: {_shown(label)} must be a number, not {_shown(value)}")
    differs = tree.get("differs", [])
    if not isinstance(differs, list) or not all(isinstance(line, str) for line in differs):
        raise UserError(f"published.differs must be a list of sentences, not {_shown(differs)}")
    numbers = {str(label): float(value) for label, value in values.items()}
    lines = tuple(" ".join(line.split()) for line in differs)
    return Published(paper=str(paper), metric=str(metric), values=numbers, differs=lines)


def _shown(value: Any) -> str:
    return shown(in_line(value))
