"""`kdschemes report`: find the runs, write the page and its picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from kdschemes.errors import UserError
from kdschemes.files import write_whole
from kdschemes.report.groups import Group, run_groups, study_groups
from kdschemes.report.text import page
from kdschemes.study.folder import RECORD
from kdschemes.study.places import find_study
from kdschemes.study.status import status

OF_A_RUN = ("config.yaml", "results.json", "metrics.jsonl")


def report(of: Sequence[str], *, output: str | None, out: str | None) -> str:
    """Write the report of a study, or of runs, and return its text.

    `of` is one study (its folder, file or name), or folders of runs, or folders that hold such. A study's report is
    written into its folder as `report.md` and `curves.png`; that of runs only to `out`, with the picture beside it.

    Raises:
        UserError: there is no such study or run; a file can't be written.
    """
    runs = [Path(word) for word in of if _holds_runs(Path(word))]
    if len(of) == 1 and not runs:
        found = status(find_study(of[0], output))
        study = found.study
        overrides = f"Overrides: `{' '.join(study.overrides)}`." if study.overrides else ""
        notes = [note for note in (overrides, found.note) if note]
        target = Path(out) if out is not None else study.folder / "report.md"
        return _write(target, study.name, study.question, study_groups(found), notes)
    others = [word for word in of if Path(word) not in runs]
    if others:
        raise UserError(f"{others[0]} is no folder of a run: give folders of runs, or one study")
    groups = run_groups(dict.fromkeys(folder for run in runs for folder in _runs_in(run)))
    return _write(Path(out) if out is not None else None, "Runs", "", groups, [])


def _write(target: Path | None, title: str, question: str, groups: Sequence[Group], notes: Sequence[str]) -> str:
    if target is None:
        return page(title, question, groups, notes, None).rstrip("\n")
    from kdschemes.report.picture import draw

    if target.is_dir():
        raise UserError(f"--out {target} is a folder: name a file")
    picture = draw(groups)
    image = target.with_name("curves.png" if target.name == "report.md" else f"{target.stem}.png")
    text = page(title, question, groups, notes, image.name if picture is not None else None)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{target.parent} cannot be written: {error.strerror or error}") from None
    if picture is not None:
        write_whole(image, picture)
    write_whole(target, text.encode())
    return f"{text}\nwritten to {target}"


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in OF_A_RUN)


def _holds_runs(folder: Path) -> bool:
    return folder.is_dir() and not (folder / RECORD).is_file() and any(True for _ in _runs_in(folder))


def _runs_in(folder: Path) -> Iterator[Path]:
    """Yield a run's folder itself, or the folders of runs that lie in it."""
    if _is_run(folder):
        yield folder
    else:
        yield from (inner for inner in sorted(folder.glob("*/")) if _is_run(inner))
