"""Reports: means and deviations against numbers worked out by hand, and what is never averaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from kdschemes import cli
from kdschemes.config.load import dump_yaml, load_config, run_name
from kdschemes.errors import UserError
from kdschemes.report import report
from kdschemes.report.groups import run_groups, study_groups
from kdschemes.report.picture import common, curve
from kdschemes.report.text import spread
from kdschemes.study.file import read_study
from kdschemes.study.folder import Entry, Study, remember, write_study
from kdschemes.study.status import status

HEAD = "| run | head | seeds | test top-1 %, last | test top-1 %, best on validation |"


def metrics(top1: float | str, nll: float = 1.0) -> dict[str, Any]:
    return {"top1": top1, "top5": 99.0, "nll": nll, "ece": 2.0}


def both(top1: float, best: float | None, nll: float = 1.0) -> dict[str, Any]:
    last = {"epoch": 4, "val": metrics(top1), "test": metrics(top1, nll)}
    return {"last": last, "best": None if best is None else {"epoch": 3, "val": metrics(best), "test": metrics(best)}}


def results(seed: int, top1: float, *, best: float | None = 50.0, nll: float = 1.0, **changes: Any) -> dict[str, Any]:
    return {
        "run": "x",
        "data": "digits",
        "seed": seed,
        "epochs": 4,
        "reported": "student",
        "heads": {"student": both(top1, best, nll)},
        "mean_over_peers": None,
        "cost": {"student": {"parameters": 1_234_567, "macs": 3_270_000}},
        "samples": {"train": 1008, "val": 250, "test": 539},
        "train_seconds": 10.0 + seed,
        "processes": 1,
        "device": "cpu",
        "precision": "fp32",
        "versions": {"kdschemes": "0.1.0", "torch": "2.11.0"},
    } | changes


def write_run(output: Path, words: list[str], found: dict[str, Any] | None, curve: list[float] = ()) -> Path:
    config = load_config([*words, "train.epochs=4"], recipes=output)
    folder = output / run_name(config)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_yaml(config))
    if found is not None:
        (folder / "results.json").write_text(json.dumps(found))
    rows = [{"kind": "train", "step": 1, "epoch": 0.5, "lr": 0.1}]
    rows += [
        {"kind": "eval", "split": "val", "epoch": n, "step": n, "student/top1": value, "teacher/top1": 99.0}
        for n, value in enumerate(curve, start=1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def rows_of(text: str, section: str = HEAD) -> list[list[str]]:
    table = text[text.index(section) :].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table]


def supervised(seed: int, *more: str) -> list[str]:
    return ["scheme=supervised", f"seed={seed}", *more]


def test_spread_is_the_mean_and_the_sample_deviation() -> None:
    assert spread([1.0, 2.0, 6.0], 2) == "3.00 ± 2.65"  # sqrt((4 + 1 + 9) / 2) = 2.6458
    assert spread([2.5], 1) == "2.5"
    assert spread([], 2) == "-"


def test_runs_that_differ_in_their_seed_alone_are_one_row(tmp_path: Path) -> None:
    for seed, top1, best, nll in ((0, 90.0, 91.0, 0.5), (1, 92.0, 95.0, 0.75), (2, 97.0, 93.0, 1.0)):
        write_run(tmp_path, supervised(seed), results(seed, top1, best=best, nll=nll))
    write_run(tmp_path, supervised(0, "optim.lr=0.05"), results(0, 80.0, best=None))
    text = report([str(tmp_path)], output=None, out=None)
    assert rows_of(text) == [
        [
            *("supervised-ce-digits-convnet optim.lr=0.05", "student", "0", "80.00", "-", "1.0000", "2.00"),
            *("1,234,567", "3.27 M", "10.0"),
        ],
        [
            *("supervised-ce-digits-convnet optim.lr=0.1", "student", "0, 1, 2", "93.00 ± 3.61", "93.00 ± 2.00"),
            *("0.7500 ± 0.2500", "2.00 ± 0.00", "1,234,567", "3.27 M", "11.0 ± 1.0"),
        ],
    ]
    assert "Protocol of all rows: epochs 4, data digits, train images 1008, val images 250, test images 539," in text
    assert "Not finished" not in text
    assert "Other heads" not in text


def test_runs_are_given_as_folders_or_as_the_folder_that_holds_them(tmp_path: Path) -> None:
    first, second = (write_run(tmp_path, supervised(seed), results(seed, 90.0 + seed)) for seed in (0, 1))
    (tmp_path / "studies" / "mine").mkdir(parents=True)
    all_of_it = report([str(tmp_path)], output=None, out=None)
    assert report([str(first), str(second), f"{first}/"], output=None, out=None) == all_of_it
    assert rows_of(report([str(second)], output=None, out=None))[0][2:4] == ["1", "91.00"]
    for word in (str(tmp_path / "none"), str(tmp_path / "studies")):
        with pytest.raises(UserError, match="is no folder of a run: give folders of runs, or one study"):
            report([str(first), word], output=None, out=None)
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / first.name).mkdir()
    (copy / first.name / "config.yaml").write_bytes((first / "config.yaml").read_bytes())
    with pytest.raises(UserError, match="is the same run as"):
        report([str(first), str(copy)], output=None, out=None)


@pytest.mark.parametrize(
    ("change", "label"),
    [
        ({"processes": 2}, "processes=2"),
        ({"epochs": 8}, "epochs=8"),
        ({"samples": {"train": 900, "val": 358, "test": 539}}, "train images=900 val images=358"),
        ({"device": "cuda"}, "device=cuda"),
    ],
)
def test_other_protocols_are_never_averaged(change: dict[str, Any], label: str, tmp_path: Path) -> None:
    write_run(tmp_path, supervised(0), results(0, 90.0))
    write_run(tmp_path, supervised(1), results(1, 92.0))
    write_run(tmp_path, supervised(2), results(2, 10.0, **change))
    write_run(tmp_path, supervised(3), None)
    text = report([str(tmp_path)], output=None, out=None)
    first, second = rows_of(text)
    assert (first[2], first[3]) == ("0, 1", "91.00 ± 1.41")
    assert (second[0], second[2], second[3]) == (f"supervised-ce-digits-convnet ({label})", "2", "10.00")
    for key in change:
        assert f"**The rows differ in {key if key != 'samples' else 'train images'}** (" in text
    assert "supervised-ce-digits-convnet-seed3" in text.partition("## Not finished")[2]


def test_other_versions_are_told(tmp_path: Path) -> None:
    write_run(tmp_path, supervised(0), results(0, 90.0))
    write_run(tmp_path, supervised(1), results(1, 92.0, versions={"kdschemes": "0.1.0", "torch": "2.12.0"}))
    text = report([str(tmp_path)], output=None, out=None)
    assert rows_of(text)[0][3] == "91.00 ± 1.41"
    assert "**The runs were made with several versions of torch**: 2.11.0, 2.12.0." in text


def test_other_heads_have_a_table_of_their_own(tmp_path: Path) -> None:
    for seed in (0, 1):
        heads = {"peer0": both(90.0 + seed, 50.0), "peer1": both(80.0, 50.0), "ensemble": both(95.0, 50.0)}
        cost = {name: {"parameters": n + 1, "macs": 1_000_000 * (n + 1)} for n, name in enumerate(heads)}
        mean = both(85.0 + seed, 50.0)
        found = results(seed, 0.0, reported="peer0", heads=heads, mean_over_peers=mean, cost=cost)
        write_run(tmp_path, [f"seed={seed}"], found)
    text = report([str(tmp_path)], output=None, out=None)
    assert [row[1:4] for row in rows_of(text)] == [["peer0", "0, 1", "90.50 ± 0.71"]]
    others = rows_of(text[text.index("## Other heads") :])
    assert [(row[1], row[3], row[7]) for row in others] == [
        ("peer1", "80.00 ± 0.00", "2"),
        ("ensemble", "95.00 ± 0.00", "3"),
        ("mean over peers", "85.50 ± 0.71", "1"),
    ]


def test_numbers_that_are_not_finite_are_shown(tmp_path: Path) -> None:
    found = results(0, 90.0)
    found["heads"]["student"]["last"]["test"]["nll"] = "nan"
    found["heads"]["student"]["best"]["test"] = None
    write_run(tmp_path, supervised(0), found)
    (row,) = rows_of(report([str(tmp_path)], output=None, out=None))
    assert (row[4], row[5]) == ("-", "nan")


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Two points of two seeds: the first finished, of the second one run finished and one stopped."""
    output = tmp_path / "runs"
    grid = "base: {scheme: supervised, train.epochs: 4}, grid: {optim.lr: [0.1, 0.2]}, seeds: [0, 1]"
    (tmp_path / "mine.yaml").write_text(f"{{question: 'Does a rate help?', {grid}}}")
    file = read_study(tmp_path / "mine.yaml", [], recipes=tmp_path)
    write_run(output, supervised(0), results(0, 90.0), [10, 80])
    write_run(output, supervised(1), results(1, 94.0), [20, 60, 90])
    write_run(output, supervised(0, "optim.lr=0.2"), results(0, 70.0), [30])
    write_run(output, supervised(1, "optim.lr=0.2"), None, [40, 50])
    folder = output / "studies" / "mine"
    folder.mkdir(parents=True)
    study = remember(folder, file.question, ["x.y=1"], file.runs)
    write_study(study)
    return study


def test_a_study_has_a_row_a_point_and_says_what_is_missing(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(study.folder)]) == 0
    printed = capsys.readouterr().out
    text = (study.folder / "report.md").read_text()
    assert printed == f"{text}\nwritten to {study.folder / 'report.md'}\n"
    assert text.startswith("# mine\n\nDoes a rate help?\n\n| run |")
    assert [row[:4] for row in rows_of(text)] == [
        ["lr=0.1", "student", "0, 1", "92.00 ± 2.83"],
        ["lr=0.2", "student", "0 (1 missing)", "70.00"],
    ]
    missing = text.partition("## Not finished\n\n")[2].partition("\n\n")[0]
    assert missing == "- lr=0.2 seed=1: interrupted, 2 of 4 epochs; no process goes on with it"
    assert "![validation curves](curves.png)" in text
    assert "Overrides: `x.y=1`." in text
    assert imread(study.folder / "curves.png").shape == (750, 1350, 4)


def test_the_picture_is_of_means_at_common_epochs(study: Study) -> None:
    first, second = study_groups(status(study))
    curves = [curve(member) for member in first.members]
    assert curves == [{1: 10, 2: 80}, {1: 20, 2: 60, 3: 90}]
    assert common(curves) == ([1, 2], [[10, 20], [80, 60]])
    assert [len(second.finished), curve(second.members[1])] == [1, {1: 40, 2: 50}]


def test_a_report_goes_where_it_is_told(study: Study, tmp_path: Path) -> None:
    target = tmp_path / "pages" / "rate.md"
    report([str(study.folder)], output=None, out=str(target))
    assert "![validation curves](rate.png)" in target.read_text()
    assert sorted(path.name for path in target.parent.iterdir()) == ["rate.md", "rate.png"]
    assert not (study.folder / "report.md").exists()
    report([str(study.output)], output=None, out=str(target))
    assert target.read_text().startswith("# Runs\n\n| run |")
    with pytest.raises(UserError, match="is a folder: name a file"):
        report([str(study.folder)], output=None, out=str(tmp_path))


def test_a_study_of_which_nothing_ran_yet(tmp_path: Path) -> None:
    entry = Entry(label="a=1 seed=0", folder="none", epochs=3, seed=0)
    folder = tmp_path / "runs" / "studies" / "mine"
    folder.mkdir(parents=True)
    write_study(Study(folder=folder, question="Q?", overrides=(), entries=(entry,)))
    text = report([str(folder)], output=None, out=None)
    assert "- a=1 seed=0: not submitted, 0 of 3 epochs\n" in text
    assert sorted(path.name for path in folder.iterdir()) == ["report.md", "study.yaml"]


def test_runs_that_teach_are_rows_at_the_end(tmp_path: Path) -> None:
    output = tmp_path / "runs"
    words = ["model=resnet20", "optim.lr=0.05"]
    teachers = [write_run(output, supervised(0, *words[:n]), results(0, 60.0 + n)) for n in (1, 2)]
    student = write_run(output, supervised(0), results(0, 90.0))
    entries = [Entry(label=run.name, folder=run.name, epochs=4, seed=0, earlier=True) for run in teachers]
    entries.append(Entry(label="missing", folder="supervised-ce-x-seed0-abc", epochs=4, seed=0, earlier=True))
    entries.append(Entry(label="seed=0", folder=student.name, epochs=4, seed=0))
    folder = output / "studies" / "mine"
    folder.mkdir(parents=True)
    write_study(Study(folder=folder, question="Q?", overrides=(), entries=tuple(entries)))
    text = report([str(folder)], output=None, out=None)
    assert [(row[0], row[3]) for row in rows_of(text)] == [
        ("mine", "90.00"),
        ("supervised-ce-digits-resnet20 optim.lr=0.05 (teaches)", "62.00"),
        ("supervised-ce-digits-resnet20 optim.lr=0.1 (teaches)", "61.00"),
    ]
    assert "- missing: not submitted, 0 of 4 epochs" in text


def test_nothing_to_report_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("error: unknown study '")
    assert run_groups([]) == []
