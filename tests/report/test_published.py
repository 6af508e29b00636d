"""Numbers of papers beside ours: read from the study file, kept in its folder, first in its report."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kdschemes.errors import UserError
from kdschemes.report import report
from kdschemes.report.published import MEASURES
from kdschemes.study.prerequisites import with_prerequisites
from kdschemes.study.published import METRICS
from kdschemes.study.record import read_study_folder, remember, write_study
from kdschemes.study.spec import read_study
from tests.report.cases import both, results, write_run

STUDY = """
question: Q
base: {model: convnet, train.epochs: 4}
prerequisites:
  large: {scheme: supervised, model: resnet20}
variants:
  alone: {scheme: supervised}
  taught: {scheme: offline, teacher: resnet20, teacher.checkpoint: prerequisites.large}
seeds: [0, 1]
published:
  - paper: hinton2015distilling
    metric: errors
    values: {large: 67, alone: 146, taught: 74}
    differs: ["Digits, not *MNIST*."]
  - {paper: mirzadeh2020takd, metric: agreement, values: {taught: 99.5}}
"""

AGREES: dict[str, dict[str, float]] = {"large": {}, "alone": {}, "taught": {"agreement": 98.0}}


def write(folder: Path, text: str = STUDY) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


def rows_of(text: str, head: str) -> list[list[str]]:
    table = text[text.index(head) :].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table]


def test_every_metric_that_a_file_may_name_is_reported() -> None:
    assert tuple(MEASURES) == METRICS


def test_published_numbers_are_the_first_section_of_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdschemes.report.html._bundle", lambda: "")
    file = read_study(write(tmp_path), [f"output_dir={tmp_path}"], recipes=tmp_path)
    study = remember(tmp_path / "studies" / "mine", file, with_prerequisites(file))
    study.folder.mkdir(parents=True)
    write_study(study)
    assert read_study_folder(study.folder).published == file.keys.published
    wrong = {"large": (100, 104), "alone": (120, 124), "taught": (110, 112)}
    for run in with_prerequisites(file):
        if run.label != "large seed=1":
            heads = {"student": both(100 - wrong[run.point][run.seed] / 100, None, **AGREES[run.point])}
            found = results(run.seed, 0.0, heads=heads, samples={"train": 1, "val": 0, "test": 10_000})
            write_run(tmp_path, [word for word in run.overrides if "group" not in word], found)
    printed = re.sub(" +", " ", report([str(study.folder)], output=None, out=None))
    text = (study.folder / "report.md").read_text()
    assert re.findall("^## .*", text, flags=re.MULTILINE)[0] == "## Published and ours"
    expected = [
        ["large (teaches)", "67", "100.0", "0 (1 missing)", "+33.0", "-", "-", "-"],
        ["alone", "146", "122.0 ± 2.8", "0, 1", "-24.0", "-", "-", "-"],
        # d = 10, 12: mean 11, std sqrt(2), t of 1 degree of freedom 12.706
        ["taught", "74", "111.0 ± 1.4", "0, 1", "+37.0", "+72.0", "+11.0", "-1.7 to +23.7"],
    ]
    assert rows_of(text, "| run | published | ours | seeds | ours - published | published gain |") == expected
    assert "| taught | 74 | 111.0 ± 1.4 | 0, 1 | +37.0 | +72.0 | +11.0 | -1.7 to +23.7 |" in printed
    assert rows_of(text, "| run | published | ours | seeds | ours - published |\n") == [
        ["taught", "99.5", "98.00 ± 0.00", "0, 1", "-1.50"]
    ]
    assert "Hinton et al. (2015), Distilling the Knowledge in a Neural Network (`hinton2015distilling`): wrong" in text
    assert "- **Differs from Hinton et al. (2015):** Digits, not \\*MNIST\\*." in text
    assert "<ul><li><strong>Differs from Hinton" in (study.folder / "report.html").read_text()


def test_rows_without_runs_say_so(tmp_path: Path) -> None:
    file = read_study(write(tmp_path), [f"output_dir={tmp_path}"], recipes=tmp_path)
    study = remember(tmp_path / "studies" / "mine", file, file.runs)  # as if the teacher's weights were given
    study.folder.mkdir(parents=True)
    write_study(study)
    report([str(study.folder)], output=None, out=str(tmp_path / "r.md"))
    rows = rows_of((tmp_path / "r.md").read_text(), "| run | published | ours |")
    assert [row[:4] for row in rows] == [
        ["large", "67", "not run", "-"],
        ["alone", "146", "not finished", "(2 missing)"],
        ["taught", "74", "not finished", "(2 missing)"],
    ]


@pytest.mark.parametrize(
    ("was", "now", "message"),
    [
        (
            "alone: 146",
            "alnoe: 146",
            "'alnoe' is neither a point nor a prereq.* mean 'alone'",
        ),
        ("hinton2015distilling", "hinton2015", r"papers\.bib, not hinton2015; did you mean 'hinton2015distilling'\?"),
        ("metric: errors", "metric: error", r"unknown published\.metric 'error'; did you mean 'errors'\?"),
        ("large: 67", "large: many", "large must be a number, not many"),
        ("{large: 67, alone: 146, taught: 74}", "[67]", "must give numbers by the labels of points"),
        ('["Digits, not *MNIST*."]', "Digits", "must be a list of sentences, not Digits"),
        ("differs:", "differ:", "unknown key of published 'differ'; did you mean 'differs'"),
        ("{paper: mirzadeh2020takd, metric: agreement, values: {taught: 99.5}}", "7", "or be a list of such, not 7"),
    ],
)
def test_mistakes_in_published_numbers_are_found_at_once(tmp_path: Path, was: str, now: str, message: str) -> None:
    assert was in STUDY
    with pytest.raises(UserError, match=message) as caught:
        read_study(write(tmp_path, STUDY.replace(was, now)), [], recipes=tmp_path)
    assert "\n" not in str(caught.value)
