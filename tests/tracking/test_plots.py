"""Learning curves of a run."""

from __future__ import annotations

import json
import math

import pytest
from matplotlib.image import imread

from kdschemes.errors import UserError
from kdschemes.tracking.metrics_log import MetricsLog
from kdschemes.tracking.plots import MAX_POINTS, STYLES, _lines, _means, draw_curves


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
    lines = _lines(rows, "(.*)/nll")
    assert lines == {"student/exit1": ([1.0, 2.0], [50.0, 50.0]), "student": ([1.0, 2.0], [51.0, 51.0])}


def test_long_logs_are_drawn_as_means_that_keep_every_row():
    epochs, values = _means(([0.0, 1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 5.0, 7.0, 100.0]), 2)
    assert epochs == [0.5, 2.5, 4.0]
    assert values == [2.0, 6.0, 100.0]
    assert MAX_POINTS >= 200
