"""Submit a study: arrays of the unfinished runs, and a report when they have ended."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from kdschemes.config.naming import dump_yaml
from kdschemes.distributed import slurm
from kdschemes.errors import UserError
from kdschemes.storage.atomic import atomic_write
from kdschemes.study.locate import SCRIPT, SITE, open_study, recipes, scripts
from kdschemes.study.record import LOCK, LOG, Study, add_submission, write_study
from kdschemes.study.slurm.arrays import PlannedArray, Sbatch, plan
from kdschemes.study.spec import StudyRun
from kdschemes.study.status import Status, counts, left_out, number_of, status
from kdschemes.study.tracking import give_finished

LOCK_PATIENCE = 120.0
"""Seconds to wait for another submission of the same study."""

OURS = ("array", "job-name", "output", "error", "open-mode", "dependency", "kill-on-invalid-dep", "export", "wrap")

OURS_SHORT = ("-a", "-J", "-o", "-e", "-d")
"""Options of sbatch that are set here."""

FLAGS = "hHkOQsvVW"
"""Short options of sbatch that take no value."""


def submit(name: str, overrides: Sequence[str], *, parallel: int | None, extra: Sequence[str], dry_run: bool) -> str:
    """Submit the runs of a study that are neither finished nor queued nor running; return the text to print.

    `parallel` is how many elements of an array run at once, `extra` is passed to sbatch. Without overrides, those with
    which the study was started are used. With `dry_run` nothing is written or submitted.

    Raises:
        UserError: a mistake in the study or the overrides, SLURM does not respond or refuses; nothing was submitted.
    """
    extra = _options(extra)
    opened = open_study(name, overrides, recipes=recipes())
    runs, folder = opened.runs, opened.study.folder
    words = Sbatch(study=folder, scripts=scripts(), parallel=parallel, extra=extra)
    found = status(opened.study)
    arrays = plan(runs, found)
    if dry_run:
        return "\n".join([*opened.notes, _dry_run(arrays, found, words)])
    _check_asked(found)
    if arrays:
        slurm.check_sbatch(_site(words))
    try:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK, timeout=LOCK_PATIENCE):
            return "\n".join([*opened.notes, _submit(runs, opened.study, words)])
    except Timeout:
        raise UserError(f"{folder} is in use by another kdschemes study run or submit: wait for it") from None
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}") from None


def _options(extra: Sequence[str]) -> list[str]:
    """Return sbatch's options as one word each, so that none can be taken for the batch script.

    Raises:
        UserError: a word is no option and no value of one, or an option is set here.
    """
    options: list[str] = []
    joint: str | None = None
    for word in extra:
        if not word.strip("-") or not word.startswith("-"):
            if joint is None:
                raise UserError(f"{word}: only sbatch options may follow --: the batch script is {SCRIPT}; remove it")
            options[-1] += joint + word
            joint = None
            continue
        option, equals, _ = word.partition("=")
        if word.startswith("--"):
            ours = any(name.startswith(option[2:]) for name in OURS)
            joint = None if equals else "="
        else:
            rest = word[1:].lstrip(FLAGS)
            option = f"-{rest[:1]}"
            ours = option in OURS_SHORT
            joint = "" if len(rest) == 1 else None
        if ours:
            raise UserError(f"{word}: kdschemes study submit sets {option} itself; remove it")
        options.append(word)
    return options


def _check_asked(found: Status) -> None:
    if not found.asked:
        raise UserError(f"{found.note.partition(';')[0]}; the queue is unknown, so nothing was submitted")


def _submit(runs: Sequence[StudyRun], study: Study, words: Sbatch) -> str:
    found = status(study)
    _check_asked(found)
    give_finished(runs, found)
    arrays = plan(runs, found)
    if not arrays:
        write_study(study)
        return f"nothing to submit: {counts(found.rows)}"
    site = _site(words)
    made: list[Path] = []
    jobs: list[str] = []
    try:
        for array in arrays:
            made.append(_write_configs(array, study.folder))
            jobs.append(slurm.sbatch(words.array(array, made[-1], jobs), site))
        report = slurm.sbatch(words.report(jobs), site)
        write_study(study)
        submitted = [
            {
                "job": job,
                "name": array.name,
                "configs": str(configs.relative_to(study.folder)),
                "runs": [run.folder for run in array.runs],
            }
            for job, array, configs in zip(jobs, arrays, made, strict=True)
        ]
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        line = {"time": now, "arrays": submitted, "log": LOG, "report": report, "sbatch": list(words.extra)}
        add_submission(study.folder, line)
    except BaseException:
        for configs in made:
            shutil.rmtree(configs, ignore_errors=True)
        slurm.cancel(jobs)
        raise
    lines = [
        f"array {job}: {number_of('run', len(array.runs))} ({array.name})"
        for job, array in zip(jobs, arrays, strict=True)
    ]
    return "\n".join([*lines, f"job {report}: the report, after the arrays", f"study folder: {study.folder}"])


def _write_configs(array: PlannedArray, folder: Path) -> Path:
    """Write the configuration of each element into a new folder and return it."""
    parent = folder / "submissions"
    parent.mkdir(exist_ok=True)
    number = 1 + max((int(path.name) for path in parent.iterdir() if path.name.isdecimal()), default=0)
    configs = parent / str(number)
    configs.mkdir()
    for element, run in enumerate(array.runs):
        config = dataclasses.replace(run.config, output_dir=str(Path(run.config.output_dir).absolute()))
        atomic_write(configs / f"{element}.yaml", dump_yaml(config).encode())
    return configs


def _site(words: Sbatch) -> Path | None:
    site = words.scripts / SITE
    return site if site.is_file() else None


def _dry_run(arrays: Sequence[PlannedArray], found: Status, words: Sbatch) -> str:
    """Return what would be submitted: the command lines, then each run with its overrides, then what is left out."""
    if not arrays:
        return f"nothing to submit: {counts(found.rows)}"
    folder = found.study.folder
    lines = [f"site file: {_site(words) or f'none ({words.scripts / SITE} is not there; kdschemes init writes one)'}"]
    jobs = [f"JOB{number}" for number in range(len(arrays))]
    last = max((int(path.name) for path in (folder / "submissions").glob("[0-9]*")), default=0)
    for number, array in enumerate(arrays):
        configs = folder / "submissions" / str(last + 1 + number)
        lines.append(shlex.join(["sbatch", "--parsable", *words.array(array, configs, jobs)]))
    lines.append(shlex.join(["sbatch", "--parsable", *words.report(jobs)]))
    for job, array in zip(jobs, arrays, strict=True):
        lines += ["", f"{job}, {array.name}"]
        for element, run in enumerate(array.runs):
            lines.append(f"{element:>4}  {run.label}: {shlex.join(run.overrides) or run.folder}")
    taken = {run.folder for array in arrays for run in array.runs}
    return "\n".join([*lines, *left_out(found, taken, "not submitted")])
