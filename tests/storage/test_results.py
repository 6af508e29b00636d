from __future__ import annotations

import json
import math
import resource
from contextlib import contextmanager

import pytest
from matplotlib.image import imread

from kdschemes.errors import UserError
from kdschemes.storage.results import mean_over_peers, plain, write_json
from kdschemes.tracking.metrics_log import MetricsLog
from kdschemes.tracking.plots import MAX_POINTS, STYLES, _head, _lines, _means, draw_curves
from kdschemes.tracking.tables import results_table


@contextmanager
def largest_file(size):
    """Let the system refuse to write past `size` bytes, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


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
            "student": {"parameters": 1_199_876, "macs": 52_800_000},
            "student/exit1": {"parameters": 987, "macs": 1_250_000_000},
        },
        "wall_seconds": 83.4,
        "images_per_second": 471.2,
        "processes": 2,
    }
    return results | changes


def cells(text):
    """The tables of a text: for each, its rows as dicts by column."""
    tables = []
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        if lines:
            split = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
            tables.append([dict(zip(split[0], row, strict=True)) for row in split[2:]])
    return tables


def test_write_json_reads_back(tmp_path):
    path = tmp_path / "results.json"
    data = {"a": 0.1 + 0.2, "b": [1, 2.5e-300], "bad": [math.nan, math.inf, -math.inf], "none": None, "t": (1,)}
    write_json(path, data)
    found = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert found == data | {"bad": ["nan", "inf", "-inf"], "t": [1]}
    assert list(found) == list(data)
    assert math.isnan(float(found["bad"][0]))
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"old": True})
    with largest_file(1000), pytest.raises(UserError, match=r"results\.json cannot be written: File too large") as e:
        write_json(path, list(range(5000)))
    assert "\n" not in str(e.value)
    assert json.loads(path.read_text()) == {"old": True}
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_no_such_folder(tmp_path):
    with pytest.raises(UserError, match=r"missing/results\.json cannot be written: No such file"):
        write_json(tmp_path / "missing" / "results.json", {})


def test_plain_leaves_the_rest_alone():
    assert plain({"a": (1, [math.nan]), "b": "inf", "c": True}) == {"a": [1, ["nan"]], "b": "inf", "c": True}


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
    (row,) = [line for line in results_table(results).splitlines() if "mean over peers" in line]
    assert " 25.00 " in row


def test_brackets_in_names_are_text():
    heads = {"peer[red]": example()["heads"]["student"]}
    assert "peer[red]" in results_table(example(heads=heads, primary_head="peer[red]"))


def train_row(step, terms, **losses):
    values = {term: 4 / step + i for i, term in enumerate(terms)} | losses
    return {
        "kind": "train",
        "step": step,
        "epoch": step / 100,
        "lr": 0.1,
        "loss/total": sum(values.values()),
        **{f"loss/{term}": value for term, value in values.items()},
        **{f"weight/{term}": 1.0 for term in values},
    }


def val_row(epoch, heads, split="val"):
    numbers = {f"{head}/{key}": 50.0 + i for i, head in enumerate(heads) for key in ("top1", "nll", "ece")}
    return {"kind": "eval", "split": split, "epoch": epoch, "step": 100 * epoch, **numbers}


@pytest.mark.parametrize(("heads", "terms"), [(1, 1), (8, 15), (30, 30)])
def test_curves_are_drawn(tmp_path, heads, terms):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    heads = [f"student/exit{i}" for i in range(heads)]
    for epoch in range(1, 4):
        for step in range(100 * (epoch - 1) + 1, 100 * epoch + 1):
            log.write(train_row(step, [f"kd/teacher->student/exit{i}" for i in range(terms)], ce=math.nan))
        log.write(val_row(epoch, heads))
    log.write({"kind": "final", "split": "test", "student/top1": 3.0})
    log.close()
    draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png", "a run")
    picture = imread(tmp_path / "curves.png")
    assert picture.shape[:2] == (1100, 1430)
    drawn = {tuple(pixel) for pixel in (picture[::2, ::2, :3] * 255).round().astype(int).reshape(-1, 3)}
    for style in STYLES[: min(7, len(heads))]:
        assert tuple(int(style["color"][i : i + 2], 16) for i in (1, 3, 5)) in drawn
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curves.png", "metrics.jsonl"]


@pytest.mark.parametrize("text", ["", '{"kind": "tra', "train only", "val only"])
def test_curves_of_a_run_that_has_hardly_begun(tmp_path, text):
    path = tmp_path / "metrics.jsonl"
    rows = {"train only": train_row(10, ["ce"]), "val only": val_row(1, ["student"])}
    path.write_text(json.dumps(rows[text]) + '\n{"kind": "train", "st' if text in rows else text)
    draw_curves(path, tmp_path / "curves.png", "a run")
    assert imread(tmp_path / "curves.png").min() < 0.5


def test_curves_without_a_log(tmp_path):
    with pytest.raises(UserError, match=r"metrics\.jsonl cannot be read"):
        draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png", "a run")


def test_lines_are_split_at_the_last_slash():
    rows = [val_row(1, ["student/exit1", "student"]), val_row(2, ["student/exit1", "student"])]
    lines = _lines(rows, _head("nll"))
    assert lines == {"student/exit1": ([1.0, 2.0], [50.0, 50.0]), "student": ([1.0, 2.0], [51.0, 51.0])}


def test_long_logs_are_drawn_as_means_that_keep_every_row():
    epochs, values = _means(([0.0, 1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 5.0, 7.0, 100.0]), 2)
    assert epochs == [0.5, 2.5, 4.0]
    assert values == [2.0, 6.0, 100.0]
    assert MAX_POINTS >= 200
