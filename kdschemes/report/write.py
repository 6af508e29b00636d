"""`kdschemes study report`: find the runs, write the pages and their charts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kdschemes.errors import UserError
from kdschemes.report.build import Report, build
from kdschemes.report.data import csv_text, json_text
from kdschemes.report.groups import run_groups, shortened, study_groups
from kdschemes.report.terminal import terminal
from kdschemes.storage.atomic import atomic_write
from kdschemes.study.locate import find_study
from kdschemes.study.record import RECORD
from kdschemes.study.status import status

OF_A_RUN = ("config.yaml", "results.json", "metrics.jsonl")

ENDINGS = (".html", ".md")

DEFAULT = "report.html"


def report(of: Sequence[str], *, output: str | None, out: str | None) -> str:
    """Write the report of a study or of runs; return its main numbers and its location.

    `of` is one study (its folder, file or name), or folders of runs, or folders that contain such. The report is an
    HTML page, the same page in Markdown, its numbers as CSV and JSON, and one PNG per chart. That of a study is
    `report.html`, `report.md`, `report.csv`, `report.json` and `CHART.png` in its folder; that of runs, or with `out`,
    is `STEM.html` with its siblings and `STEM_CHART.png`, by default `report.html` in the current folder.

    Raises:
        UserError: there is no such study or run; a file can't be written; `out` ends in neither .html nor .md.
    """
    runs = [Path(word) for word in of if _holds_runs(Path(word))]
    if len(of) == 1 and not runs:
        found = status(find_study(of[0], output))
        study = found.study
        overrides = f"Overrides: `{' '.join(study.overrides)}`." if study.overrides else ""
        target = _target(out) if out is not None else study.folder / DEFAULT
        made = build(
            study.name,
            study.question,
            study_groups(found),
            notes=[note for note in (overrides, found.note) if note],
            baseline=study.baseline,
            compare=study.compare,
            analyses=study.analyses,
            published=study.published,
        )
        return _write(made, target, "" if out is None else f"{target.stem}_")
    others = [word for word in of if Path(word) not in runs]
    if others:
        raise UserError(f"{others[0]} is not the folder of a run: give folders of runs, or one study")
    target = _target(out if out is not None else DEFAULT)
    groups, shared = shortened(run_groups(dict.fromkeys(folder for run in runs for folder in _runs_in(run))))
    return _write(build("Runs", "", groups, shared=shared), target, f"{target.stem}_")


def _target(out: str) -> Path:
    target = Path(out)
    if target.is_dir():
        raise UserError(f"--out {out} is a folder: name a file that ends in {' or '.join(ENDINGS)}")
    if target.suffix not in ENDINGS:
        raise UserError(
            f"--out {out} must end in {' or '.join(ENDINGS)}: both are written, with the charts next to them"
        )
    return target


def _write(made: Report, target: Path, prefix: str) -> str:
    from kdschemes.report.html import html
    from kdschemes.report.markdown import markdown
    from kdschemes.report.render import png, specs

    trees = specs(chart for section in made.sections for chart in section.charts)
    names = {name: f"{prefix}{name}.png" for name in trees}
    data = {".csv": csv_text(made.runs), ".json": json_text(_tree(made))}
    files = [target.with_suffix(ending).name for ending in data] if made.runs else []
    pages = {".html": html(made, trees, files), ".md": markdown(made, names, files)}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{target.parent} cannot be written: {error.strerror or error}") from None
    pictures = {file: png(trees[name]) for name, file in names.items()}
    for file, picture in pictures.items():
        atomic_write(target.with_name(file), picture)
    for ending, text in {**(data if files else {}), ".md": pages[".md"], ".html": pages[".html"]}.items():
        atomic_write(target.with_suffix(ending), text.encode())
    others = [target.with_suffix(".md").name, *files, *([f"{len(names)} PNGs"] if names else [])]
    return f"{terminal(made)}\n\nwritten: {target.with_suffix('.html')}, {', '.join(others)}"


def _tree(made: Report) -> dict[str, Any]:
    """Return a report as plain data; its tables hold what the page shows."""
    tables = [
        {"section": section.title, "caption": table.caption, "columns": table.columns, "rows": table.rows}
        for section in made.sections
        for table in section.tables
    ]
    about = {"title": made.title, "question": made.question, "summary": made.summary, "warnings": made.warnings}
    return {**about, "comparisons": made.comparisons, "runs": made.runs, "tables": tables}


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, finished or not."""
    return any((folder / name).is_file() for name in OF_A_RUN)


def _holds_runs(folder: Path) -> bool:
    return folder.is_dir() and not (folder / RECORD).is_file() and any(True for _ in _runs_in(folder))


def _runs_in(folder: Path) -> Iterator[Path]:
    """Yield the folder itself if it is a run's, or the folders of runs in it."""
    if is_run(folder):
        yield folder
    else:
        yield from (inner for inner in sorted(folder.glob("*/")) if is_run(inner))
