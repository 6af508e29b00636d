"""The job arrays of a submission: the remaining runs, each array after those of its prerequisites."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdschemes.study.locate import REPORT_SCRIPT, SCRIPT
from kdschemes.study.record import LOG
from kdschemes.study.spec import StudyRun
from kdschemes.study.status import ACTIVE, Status


@dataclass(frozen=True, kw_only=True)
class PlannedArray:
    """An array to submit. It waits for arrays of the same submission, by index, and for earlier array elements."""

    name: str
    runs: tuple[StudyRun, ...]
    after: tuple[int, ...]
    after_elements: tuple[str, ...]


def plan(runs: Sequence[StudyRun], found: Status) -> list[PlannedArray]:
    """Return the arrays of the runs that are neither finished nor queued nor running, in order of submission.

    A prerequisite is submitted only if a run that needs it is submitted too. Runs that wait for others and runs that do
    not are in separate arrays, so that a teacher that fails stops only its students.
    """
    rows = found.by_folder
    by_name = {run.folder: run for run in runs}
    taken: dict[str, int] = {}

    def level(name: str) -> int:
        """Return how many arrays in a chain precede a run; the run is included if it must be submitted."""
        if rows[name].state in ("finished", *ACTIVE):
            return -1 if rows[name].state == "finished" else 0
        if name not in taken:
            taken[name] = 1 + max((level(need) for need in by_name[name].needs), default=-1)
        return taken[name]

    for run in runs:
        if not run.earlier:
            level(run.folder)
    needed = {need for name in taken for need in by_name[name].needs}
    by_place: dict[tuple[int, bool], list[StudyRun]] = {}
    for run in runs:
        if run.folder in taken:
            by_place.setdefault((taken[run.folder], run.folder not in needed), []).append(run)
    groups = dict(sorted(by_place.items()))
    array_numbers = {run.folder: number for number, group in enumerate(groups.values()) for run in group}
    arrays = []
    for (_, last), group in groups.items():
        needs = {need for run in group for need in run.needs}
        active = sorted(str(rows[need].job) for need in needs if rows[need].state in ACTIVE and rows[need].job)
        arrays.append(
            PlannedArray(
                name=found.study.name if last else f"{found.study.name}-earlier",
                runs=tuple(group),
                after=tuple(sorted({array_numbers[need] for need in needs if need in array_numbers})),
                after_elements=tuple(active),
            )
        )
    return arrays


@dataclass(frozen=True, kw_only=True)
class Sbatch:
    """The arguments of `sbatch` for the jobs of a study.

    `scripts` is the folder that holds `slurm`; `parallel` elements of an array run at once.
    """

    study: Path
    scripts: Path
    parallel: int | None
    extra: Sequence[str]

    def array(self, array: PlannedArray, configs: Path, jobs: Sequence[str]) -> list[str]:
        """Return the arguments that submit an array, given the job numbers of the arrays before it."""
        limit = f"%{self.parallel}" if self.parallel is not None else ""
        after = [*(jobs[place] for place in array.after), *array.after_elements]
        wait = [f"--dependency=afterok:{':'.join(after)}", "--kill-on-invalid-dep=yes"] if after else []
        return [
            f"--job-name={array.name}",
            f"--array=0-{len(array.runs) - 1}{limit}",
            f"--output={self.study / LOG}",
            *self._shared(),
            *wait,
            *self.extra,
            str(self.scripts / SCRIPT),
            str(configs),
        ]

    def report(self, jobs: Sequence[str]) -> list[str]:
        """Return the arguments that submit the report, which runs once all arrays have ended, however."""
        return [
            f"--job-name={self.study.name}-report",
            f"--output={self.study / 'logs' / '%x-%j.out'}",
            *self._shared(),
            f"--dependency=afterany:{':'.join(jobs)}",
            str(self.scripts / REPORT_SCRIPT),
            str(self.study),
        ]

    def _shared(self) -> list[str]:
        return ["--open-mode=append", f"--export=ALL,KDSCHEMES_SCRIPTS={self.scripts}"]
