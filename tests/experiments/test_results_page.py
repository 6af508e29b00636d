"""The pages of docs/results: numbers from finished runs, and one table of all pages, here and in the README."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.results_page import BEGIN, END, main
from tests import REPOSITORY
from tests.report.cases import results, supervised, write_run, write_study_of

STUDY = """
question: Q?
base: {scheme: supervised, train.epochs: 4}
variants: {alone: {}, smoothed: {method: label_smoothing}}
seeds: [0, 1]
published: {paper: hinton2015distilling, metric: top1, values: {alone: 98.92, smoothed: 99}, differs: [Digits.]}
"""


OVERRIDES = ("experiment=cifar100/study", "data.root=somewhere", "optim.lr=0.2", "data.exclude_classes=[1, 2]")


def test_a_page_and_the_tables_come_from_the_runs(tmp_path: Path) -> None:
    runs, docs = tmp_path / "runs", tmp_path / "docs" / "results"
    study = write_study_of(runs, "ours", STUDY, overrides=OVERRIDES)
    for entry in study.runs:
        words = supervised(entry.seed, *(["method=label_smoothing"] if entry.variant == "smoothed" else []))
        found = results(entry.seed, 90.0 + entry.seed, train_seconds=3600.0, pack_size=2)
        found |= {"code": {"version": "0", "commit": f"abc{entry.seed}"}} if entry.variant == "alone" else {}
        write_run(runs, words, found)
    (tmp_path / "README.md").write_text(f"# Ours\n\n{BEGIN}\nold\n{END}\n\nMore.\n")
    assert main([str(study.folder), "--docs", str(tmp_path)]) == 0
    page = (docs / "ours.md").read_text()
    for part in ("# ours", "Q?", "## Published and ours", "## Results", "## Cost", "- **Differs from Hinton et al."):
        assert part in page
    command = "kdschemes study run ours experiment=cifar100/study data.root=PATH optim.lr=0.2"
    assert f"`{command} 'data.exclude_classes=[1, 2]'`" in page
    assert "Commit of the runs: abc0, abc1, not recorded by 2 runs." in page
    assert "somewhere" not in page
    assert "Training: 4.00 hours of one process for 4 runs" in page
    rows = [
        "| [ours]({}ours.md) | alone | 98.92 | 90.50 ± 0.71 | 0, 1 | -8.42 |",
        "| [ours]({}ours.md) | smoothed | 99 | 90.50 ± 0.71 | 0, 1 | -8.50 |",
    ]
    assert "\n".join(rows).format("", "") in (docs / "README.md").read_text()
    text = (tmp_path / "README.md").read_text()
    assert "\n".join(rows).format("docs/results/", "docs/results/") in text
    assert "old" not in text
    assert text.endswith("\n\nMore.\n")
    before = text
    assert main(["--docs", str(tmp_path)]) == 0
    assert (tmp_path / "README.md").read_text() == before


def test_an_unknown_study_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stanton2012", "--docs", str(tmp_path)]) == 2
    assert "did you mean 'stanton2021'" in capsys.readouterr().err


def test_the_tables_are_those_of_the_pages() -> None:
    from experiments.results_page import index

    table = index(REPOSITORY / "docs" / "results")
    assert table in (REPOSITORY / "docs" / "results" / "README.md").read_text()
    assert table.replace("](", "](docs/results/") in (REPOSITORY / "README.md").read_text()
