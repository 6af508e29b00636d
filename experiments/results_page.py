"""The page of a finished study in docs/results, and the table of all pages: `python -m experiments.results_page NAME`.

The page has the published numbers beside ours, the study's analyses, settings, seeds, commits, time and the command.
The table is written into `docs/results/README.md` and between the markers of `README.md`. No number is typed by hand.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kdschemes.errors import UserError
from kdschemes.report.analyses import ANALYSES
from kdschemes.report.build import Report, build
from kdschemes.report.charts.grid import grid
from kdschemes.report.document import Section
from kdschemes.report.groups import Group, study_groups
from kdschemes.report.markdown import markdown
from kdschemes.report.published import TITLE
from kdschemes.report.render import png, specs
from kdschemes.report.tables import commits
from kdschemes.study.locate import find_study
from kdschemes.study.record import Study
from kdschemes.study.status import status

REPOSITORY = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- results: written by experiments.results_page -->", "<!-- end of results -->"
KEPT = ("Results", "Cost", "Not finished")
PATHS = ("data.root", "data.classes", "output_dir", "model.checkpoint", "teacher.checkpoint", "teacher.cache_dir")
"""Keys whose values are places on somebody's machine: a command is printed without them."""
HEAD = "| study | run | published | ours | seeds | ours - published |\n| --- | --- | --- | --- | --- | --- |"
ROW = re.compile(r"^\| ((?!run \||---).*?) \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|", re.MULTILINE)
"""A row of a page's table of published numbers: its first five cells."""


def page(study: Study) -> tuple[Report, list[Group]]:
    """Return the page of a study, and its groups: numbers beside published ones, results, cost, how it was run."""
    groups = study_groups(status(study))
    made = build(
        study.name,
        study.question,
        groups,
        baseline=study.baseline,
        compare=study.compare,
        published=study.published,
    )
    sections = [replace(each, charts=()) for each in made.sections if each.title in (TITLE, *KEPT)]
    found = [section for name in study.analyses for section in ANALYSES[name](groups)]
    chart = grid(groups)
    sections[1:1] = [chart, *found] if chart is not None else found
    return replace(made, sections=[*sections, _how(study, groups)]), groups


def index(pages: Path) -> str:
    """Return the table of the published numbers of all pages in a folder, as Markdown; a sentence if there are none."""
    rows = []
    for path in sorted(pages.glob("*.md")):
        if path.name != "README.md" and (part := path.read_text().partition(f"## {TITLE}\n")[2]):
            for cells in ROW.findall(part.partition("\n## ")[0]):
                rows.append(f"| [{path.stem}]({path.name}) | " + " | ".join(cells) + " |")
    return "\n".join([HEAD, *rows]) if rows else "No study of published numbers has finished yet."


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", nargs="?", help="a study's name or folder; without it, only the tables are written")
    parser.add_argument("--output", help="folder of the runs (default: runs)")
    parser.add_argument("--docs", type=Path, default=REPOSITORY, help="repository whose pages are written")
    options = parser.parse_args(arguments)
    pages = options.docs / "docs" / "results"
    pages.mkdir(parents=True, exist_ok=True)
    try:
        if options.study:
            _write(find_study(options.study, options.output), pages)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    table = index(pages)
    _between(pages / "README.md", table)
    _between(options.docs / "README.md", re.sub(r"\]\(([\w.]+\.md)\)", r"](docs/results/\1)", table))
    return 0


def _write(study: Study, pages: Path) -> None:
    made, _ = page(study)
    trees = specs(chart for section in made.sections for chart in section.charts)
    files = {name: f"{study.name}_{name}.png" for name in trees}
    for name, file in files.items():
        (pages / file).write_bytes(png(trees[name]))
    (pages / f"{study.name}.md").write_text(markdown(made, files))


def _how(study: Study, groups: Sequence[Group]) -> Section:
    results = [result for group in groups for result in group.results]
    hours = sum(result["train_seconds"] for result in results) / 3600
    keys = [word.partition("=")[0] for word in study.overrides]
    words = [f"{key}=PATH" if key in PATHS else word for key, word in zip(keys, study.overrides, strict=True)]
    command = shlex.join(["kdschemes", "study", "run", study.name, *words])
    lines = [
        f"Command: `{command}`",
        f"Settings: all are in `experiments/studies/{study.name}.yaml`.",
        f"Commit of the runs: {_commits(groups)}.",
        f"Training: {hours:.2f} hours of one process for {len(results)} runs, as the clock says; other work ran beside "
        "it.",
    ]
    return Section(title="How it was run", items=lines)


def _commits(groups: Sequence[Group]) -> str:
    """Return the commits that the runs have recorded, and how many runs have recorded none."""
    without = sum("commit" not in (result.get("code") or {}) for group in groups for result in group.results)
    return ", ".join([*commits(groups), *([f"not recorded by {without} runs"] if without else [])])


def _between(path: Path, table: str) -> None:
    """Write a table between the markers of a page; a page without them is left alone."""
    text = path.read_text() if path.exists() else f"# Reproduced results\n\n{BEGIN}\n{END}\n"
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if begin and end:
        path.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}")


if __name__ == "__main__":
    sys.exit(main())
