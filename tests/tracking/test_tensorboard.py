"""TensorBoard mirrors the log, also after a resume."""

from __future__ import annotations

import math
import time

import pytest

from tests.tracking.cases import events, trackers, train, val


def test_tensorboard_has_every_row(tmp_path):
    tracker = trackers(tmp_path / "r1", "tensorboard")
    for step in range(1, 11):
        tracker.log(train(step), step)
    tracker.log(val(10, 60.0), 10)
    tracker.log(val(10, math.nan) | {"split": "test"}, 10)
    tracker.summary({"heads": {"student": {"top1": 54.0}}})
    tracker.finish()
    found = events(tmp_path / "r1")
    tags = {"test/student/exit1/top1", "train/lr", "train/loss/kd/teacher->student", "val/student/exit1/top1"}
    assert {tag for tag in found.Tags()["scalars"] if "epoch" not in tag} == tags
    losses = found.Scalars("train/loss/kd/teacher->student")
    assert [event.step for event in losses] == list(range(1, 11))
    assert [event.value for event in losses] == pytest.approx([1 / step for step in range(1, 11)])
    assert math.isnan(found.Scalars("test/student/exit1/top1")[0].value)
    assert b'"epochs": 2' in found.Tensors("config/text_summary")[0].tensor_proto.string_val[0]
    assert b'"heads/student/top1": 54.0' in found.Tensors("results/text_summary")[0].tensor_proto.string_val[0]


def test_tensorboard_forgets_what_came_after_the_checkpoint(tmp_path):
    first = trackers(tmp_path / "r1", "tensorboard")
    for step in range(1, 9):
        first.log(train(step), step)
    first.finish(preempted=True)
    time.sleep(1.1)  # event files are read in the order of their names, which hold the second
    second = trackers(tmp_path / "r1", "tensorboard", resume_step=4)
    for step in range(5, 7):
        second.log(train(step, lr=0.5), step)
    second.finish()
    found = [(event.step, event.value) for event in events(tmp_path / "r1").Scalars("train/lr")]
    assert [step for step, _ in found] == [1, 2, 3, 4, 5, 6]
    assert [value for _, value in found] == pytest.approx([0.1] * 4 + [0.5] * 2)


def test_tensorboard_of_a_run_that_starts_again(tmp_path):
    for value in (0.1, 0.5):
        tracker = trackers(tmp_path / "r1", "tensorboard")
        tracker.log(train(1, lr=value), 1)
        tracker.finish()
        time.sleep(1.1)
    assert [event.value for event in events(tmp_path / "r1").Scalars("train/lr")] == [0.5]
