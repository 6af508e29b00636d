"""The table of results in the terminal."""

from __future__ import annotations

import json
import math

from kdschemes.storage.results import mean_over_peers, write_json
from kdschemes.tracking.tables import results_table


def metrics(top1, *, teacher=True):
    known = {"top1": top1, "top5": top1 + 10, "nll": 1.25, "ece": 4.5}
    return known | ({"agreement": 77.25, "kl": 0.3456} if teacher else {})


def example(**changes):
    entry = {
        "last": {"epoch": 15, "val": metrics(70.0), "test": metrics(69.0)},
        "best": {"epoch": 12, "val": metrics(71.0), "test": metrics(68.0)},
    }
    low = {
        "last": {"epoch": 15, "val": metrics(50.0), "test": metrics(49.0)},
        "best": {"epoch": 12, "val": metrics(51.0), "test": metrics(48.0)},
    }
    results = {
        "run": "self-byot-digits-convnet-seed0-1a2b3c4d",
        "scheme": "self",
        "method": "byot",
        "data": "digits",
        "seed": 0,
        "epochs": 15,
        "primary_head": "student",
        "heads": {"student/exit1": low, "student": entry},
        "cost": {
            "student": {"parameters": 1_199_876, "macs": 52_800_000, "latency_ms": 1.249},
            "student/exit1": {"parameters": 987, "macs": 1_250_000_000},
        },
        "wall_seconds": 83.4,
        "images_per_second": 471.2,
        "processes": 2,
    }
    return results | changes


def cells(text):
    """The tables of a text: for each, its columns as dicts, the name of a column as its head."""
    tables = []
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        if lines:
            first, _, *split = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
            columns = zip(*(row[1:] for row in split), strict=True)
            titles = [row[0] for row in split]
            found = zip(first[1:], columns, strict=True)
            tables.append([{"head": head} | dict(zip(titles, column, strict=True)) for head, column in found])
    return tables


def test_table_shows_every_number():
    text = results_table(example())
    assert text.splitlines()[0] == "self-byot-digits-convnet-seed0-1a2b3c4d"
    assert text.splitlines()[1] == "self, byot, digits, seed 0, epochs 15, processes 2, 83 s, 471 images/s"
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 160
    assert text.index("Last epoch") < text.index("Best epoch on the validation split")
    last, best = cells(text)
    assert [row["head"] for row in last] == ["student (reported)", "student/exit1"]
    assert last[0] == {
        "head": "student (reported)",
        "epoch": "15",
        "val top-1 %": "70.00",
        "val top-5 %": "80.00",
        "test top-1 %": "69.00",
        "test top-5 %": "79.00",
        "test NLL": "1.2500",
        "test ECE %": "4.50",
        "agreement %": "77.25",
        "KL(teacher)": "0.3456",
        "params": "1.20 M",
        "MACs": "52.80 M",
        "latency ms": "1.25",
    }
    assert best[0]["epoch"] == "12"
    assert (best[0]["val top-1 %"], best[0]["test top-1 %"]) == ("71.00", "68.00")
    assert (best[1]["params"], best[1]["MACs"]) == ("987", "1.25 G")


def test_table_without_teacher_validation_test_best_or_cost():
    heads = {"student": {"last": {"epoch": 3, "val": metrics(70.0, teacher=False), "test": None}, "best": None}}
    (rows,) = cells(results_table(example(heads=heads, cost={})))
    (row,) = rows
    assert row["val NLL"] == "1.2500"
    assert row["test top-1 %"] == row["params"] == "-"
    assert not any("agreement" in column or "KL" in column for column in row)

    heads = {"student": {"last": {"epoch": 3, "val": None, "test": metrics(70.0)}, "best": None}}
    (row,) = cells(results_table(example(heads=heads)))[0]
    assert row["val top-1 %"] == "-"
    assert row["test NLL"] == "1.2500"


def test_table_of_stored_results_with_numbers_that_are_not_finite(tmp_path):
    results = example()
    results["heads"]["student"]["last"]["test"]["nll"] = math.nan
    write_json(tmp_path / "results.json", results)
    last, _ = cells(results_table(json.loads((tmp_path / "results.json").read_text())))
    assert last[0]["test NLL"] == "nan"


def test_the_mean_over_peers_is_of_the_peers_alone_and_never_the_best():
    def entry(top1: float) -> dict[str, object]:
        return {"epoch": 4, "val": None, "test": {"top1": top1, "nll": top1 / 10}}

    heads = {
        name: {"last": entry(top1), "best": None}
        for name, top1 in (("peer0", 10.0), ("peer1", 40.0), ("ensemble", 90.0))
    }
    assert mean_over_peers(heads, ["peer0", "peer1"]) == {
        "last": {"epoch": 4, "val": None, "test": {"top1": 25.0, "nll": 2.5}},
        "best": None,
    }
    assert mean_over_peers(heads, []) is None
    results = {
        "run": "r",
        "primary_head": "peer0",
        "heads": heads,
        "mean_over_peers": mean_over_peers(heads, ["peer0", "peer1"]),
    }
    *_, mean = cells(results_table(results))[0]
    assert (mean["head"], mean["test top-1 %"]) == ("mean over peers", "25.00")


def test_brackets_in_names_are_text():
    heads = {"peer[red]": example()["heads"]["student"]}
    assert "peer[red]" in results_table(example(heads=heads, primary_head="peer[red]"))


def test_baselines_have_rows_of_their_own_or_the_commands_that_train_them():
    other = example(scheme="supervised", method="ce", run="supervised-ce")
    other["heads"] = {"student": {"last": {"epoch": 15, "val": metrics(66.0), "test": metrics(65.0)}, "best": None}}
    text = results_table(example(), [other], ["kdschemes train scheme=supervised method=deep_supervision"])
    last, best = cells(text)
    assert [row["head"] for row in last] == ["student (reported)", "student/exit1", "baseline: ce"]
    assert (last[2]["test top-1 %"], last[2]["params"]) == ("65.00", "1.20 M")
    assert len(best) == 2
    assert "not trained yet: kdschemes train scheme=supervised method=deep_supervision\n" in text


def test_a_teacher_worse_than_its_student_is_warned_of():
    def table(teacher, *baselines):
        heads = example()["heads"] | {
            "teacher": {"last": {"epoch": 15, "val": metrics(teacher), "test": metrics(teacher)}}
        }
        return results_table(example(heads=heads, teacher="teacher", samples={"val": 250, "test": 539}), baselines)

    alone = example(scheme="supervised", method="ce")
    assert "warning: the teacher is worse than its own student: 69.90 against 70.00 % of 250 images" in table(69.9)
    assert "worse than its student trained without it: 69.90 against 70.00" in table(69.9, alone)
    assert "warning" not in table(70.0) + table(70.0, alone) + results_table(example())


def test_one_table_where_the_last_epoch_is_the_best():
    results = example()
    for both in results["heads"].values():
        both["best"] = both["last"]
    text = results_table(results)
    assert "Last epoch, which is the best on the validation split too\n" in text
    assert len(cells(text)) == 1


def test_the_teacher_comes_last_and_has_no_epoch_of_the_run():
    heads = {"teacher": example()["heads"]["student"]} | example()["heads"]
    last, _ = cells(results_table(example(heads=heads, teacher="teacher", samples={"val": 250, "test": 539})))
    assert [column["head"] for column in last] == ["student (reported)", "student/exit1", "teacher"]
    assert [column["epoch"] for column in last] == ["15", "15", "-"]


def test_balanced_accuracy_and_f1_are_shown_where_they_were_measured():
    results = example()
    results["heads"]["student"]["last"]["test"] |= {"balanced_accuracy": 61.5, "macro_f1": 60.25}
    last, best = cells(results_table(results))
    assert [column["test balanced %"] for column in last] == ["61.50", "-"]
    assert [column["test macro F1 %"] for column in last] == ["60.25", "-"]
    assert "test macro F1 %" not in best[0]


def test_heads_that_do_not_fit_side_by_side_follow_below(monkeypatch):
    heads = {f"peer{number}": example()["heads"]["student"] for number in range(9)}
    results = example(heads=heads, primary_head="peer0", cost={})
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    text = results_table(results)
    assert max(len(line) for line in text.splitlines() if line.startswith("|")) <= 80
    shown = [column["head"].partition(" ")[0] for table in cells(text) for column in table]
    assert shown == [*heads, *heads]
    assert "test top-1 %" in text
