"""A study's folder: its runs in `study.yaml`, what was submitted in `jobs.jsonl`, what failed in `failures.json`.

What writes raises a UserError if the folder can't be written, what reads if the file is damaged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from kdschemes.config.parse import parse_json, read_yaml, to_yaml
from kdschemes.errors import UserError
from kdschemes.storage.atomic import atomic_write
from kdschemes.study.published import Published
from kdschemes.study.spec import StudyFile, StudyRun
from kdschemes.study.spec_keys import NAME

RECORD, FAILURES = "study.yaml", "failures.json"

LOCK = "lock"
"""Held by the process that runs or submits the study."""

LOG = "logs/%x-%A_%a.out"
"""Path of an element's log: %x is the job's name, %A the array's number, %a the element's."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One run of a study as recorded in its folder. `epochs` is how many it trains."""

    label: str
    folder: Annotated[str, Field(pattern=r"^[^/.][^/]*$")]
    epochs: int
    seed: int
    variant: str | None = None
    grid: Mapping[str, Any] = field(default_factory=dict)
    earlier: bool = False

    @property
    def title(self) -> str:
        """The label as shown to the user."""
        return f"{self.label} (prerequisite)" if self.earlier else self.label


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study as recorded in its folder: the prerequisites first, then its own runs.

    `analyses` are extra sections of its report, `baseline` is the label, without a seed, of the point that others are
    compared with, `compare` holds planned pairs of such labels, `published` the numbers of papers beside which ours are
    shown.
    """

    folder: Path
    question: str
    overrides: tuple[str, ...]
    entries: tuple[Entry, ...]
    analyses: tuple[str, ...] = ()
    baseline: str | None = None
    compare: tuple[tuple[str, str], ...] = ()
    published: tuple[Published, ...] = ()

    @property
    def name(self) -> str:
        return self.folder.absolute().name

    @property
    def output(self) -> Path:
        """Folder that contains the runs' folders."""
        return self.folder.absolute().parents[1]

    @property
    def runs(self) -> list[Entry]:
        """The runs that the study file names."""
        return [entry for entry in self.entries if not entry.earlier]


@dataclass(frozen=True, kw_only=True)
class ArrayTask:
    """An element of a job array that was submitted for a run: `job` is `ARRAY_ELEMENT`, `name` that of the array."""

    job: str
    name: str
    log: Path


def remember(folder: Path, file: StudyFile, runs: Sequence[StudyRun]) -> Study:
    """Return the study of a file with these runs, ready to be written."""
    entries = [
        Entry(
            label=run.label,
            folder=run.folder,
            epochs=run.config.train.epochs,
            seed=run.seed,
            variant=run.variant,
            grid=dict(run.grid),
            earlier=run.earlier,
        )
        for run in runs
    ]
    return Study(
        folder=folder,
        question=file.keys.question,
        overrides=file.run_overrides,
        entries=tuple(entries),
        analyses=file.keys.analyses,
        baseline=file.keys.baseline,
        compare=file.keys.compare,
        published=file.keys.published,
    )


def write_study(study: Study) -> None:
    """Write `study.yaml`."""
    tree = {
        "question": study.question,
        "overrides": list(study.overrides),
        "analyses": list(study.analyses),
        "baseline": study.baseline,
        "compare": [list(pair) for pair in study.compare],
        "published": [asdict(each) | {"differs": list(each.differs)} for each in study.published],
        "runs": list(map(asdict, study.entries)),
    }
    atomic_write(study.folder / RECORD, to_yaml(tree, width=120).encode())


def read_study_folder(folder: Path) -> Study:
    """Read `study.yaml`."""
    path = folder / RECORD
    try:
        tree = read_yaml(path)
        study: Study = _STUDY.validate_python(tree | {"folder": folder, "entries": tree.get("runs")})
    except ValueError:
        raise UserError(f"{path} is damaged: delete it and start the study again") from None
    return study


_STUDY = TypeAdapter(Study)


def add_submission(folder: Path, submission: Mapping[str, Any]) -> None:
    """Add a line to `jobs.jsonl`."""
    path = folder / "jobs.jsonl"
    before = path.read_bytes() if path.exists() else b""
    atomic_write(path, before + (json.dumps(submission) + "\n").encode())


def read_array_tasks(folder: Path) -> dict[str, list[ArrayTask]]:
    """Return by folder name the array elements as which each run was submitted, oldest first."""
    path = folder / "jobs.jsonl"
    found: dict[str, list[ArrayTask]] = {}
    if not path.exists():
        return found
    try:
        for array in [array for line in path.read_text().splitlines() for array in parse_json(line)["arrays"]]:
            if not all(NAME.fullmatch(array[key]) for key in ("name", "job")):
                raise ValueError("a job's name or number cannot be part of a path")
            for number, run in enumerate(array["runs"]):
                log = LOG.replace("%x", array["name"]).replace("%A", array["job"]).replace("%a", str(number))
                task = ArrayTask(job=f"{array['job']}_{number}", name=array["name"], log=folder / log)
                found.setdefault(run, []).append(task)
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(f"{path} is damaged: delete the wrong line") from None
    return found


def read_failures(folder: Path) -> dict[str, str]:
    """Return by folder name why runs without SLURM failed."""
    path = folder / FAILURES
    try:
        found = parse_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged: delete it")
    return {str(run): str(reason) for run, reason in found.items()}


def write_failures(folder: Path, failures: Mapping[str, str]) -> None:
    """Write `failures.json`."""
    atomic_write(folder / FAILURES, (json.dumps(dict(failures), indent=2) + "\n").encode())
