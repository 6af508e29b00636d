"""W&B, offline, with the real client."""

from __future__ import annotations

import socket
import time

import pytest
import wandb

from kdschemes.errors import UserError
from tests.tracking.cases import history, items, records, trackers, train, val, wandb_files


def test_wandb_offline_keeps_every_row(alone, tmp_path):
    tracker = trackers(tmp_path / "runs" / "r1", "wandb")
    for step in range(1, 11):
        tracker.log(train(step, note="text", flag=True), step)
    tracker.log(val(10, 60.0), 10)
    tracker.log(val(20, 55.0), 20)
    tracker.log({"which": "best"} | val(20, 61.0) | {"kind": "final"}, 20)  # beside the curve, not on it
    tracker.summary({"heads": {"student": {"last": {"test": {"top1": 54.0}, "val": None}}}, "run": "r1"})
    tracker.finish()

    (path,) = wandb_files(tmp_path / "runs")
    rows = history(path)
    assert [row["global_step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 20]
    assert rows[1] == {
        "_step": 2,
        "global_step": 2,
        "train/epoch": 0.2,
        "train/lr": 0.1,
        "train/loss/kd/teacher->student": 0.5,
    }
    assert rows[9]["train/loss/kd/teacher->student"] == 0.1
    assert [row.get("val/student/exit1/top1") for row in rows[9:]] == [60.0, 55.0]
    assert rows[10]["final/best/val/student/exit1/top1"] == 61.0

    found = records(path)
    run = next(record.run for record in found if record.WhichOneof("record_type") == "run")
    model = items(run.config.update)["model"]["name"]
    assert (run.project, run.job_type, run.display_name) == ("kdschemes", "offline", "r1")
    assert run.run_group == f"offline-kd-digits-{model}"
    assert list(run.tags) == ["offline", "kd", "digits", model]
    assert run.run_id == (tmp_path / "runs" / "r1" / "wandb_run_id").read_text()
    assert items(run.config.update)["train"]["epochs"] == 2
    defined = {record.metric.name or record.metric.glob_name: record.metric for record in found}
    assert {name: m.step_metric for name, m in defined.items() if name} == {
        "global_step": "",
        "final/*": "global_step",
        "train/*": "global_step",
        "val/*": "global_step",
    }
    summary = {}
    for record in found:
        if record.WhichOneof("record_type") == "summary":
            summary |= items(record.summary.update)
    assert summary["val/student/exit1/top1"] == 55.0
    assert summary["heads/student/last/test/top1"] == 54.0
    assert "heads/student/last/val" not in summary
    (end,) = [record.exit for record in found if record.WhichOneof("record_type") == "exit"]
    assert end.exit_code == 0


def test_wandb_run_that_goes_on_keeps_its_id(alone, tmp_path):
    folder = tmp_path / "runs" / "r1"
    first = trackers(folder, "wandb")
    first.log(train(1), 1)
    first.finish(preempted=True)
    name = (folder / "wandb_run_id").read_text()
    time.sleep(1.1)  # W&B names its folders by the second
    second = trackers(folder, "wandb", resume_step=1)
    second.log(train(2), 2)
    second.finish(exit_code=1)
    other = trackers(tmp_path / "runs" / "r2", "wandb")
    other.finish()

    paths = wandb_files(tmp_path / "runs")
    assert [path.stem == f"run-{name}" for path in paths] == [True, True, False]
    assert [row["global_step"] for path in paths[:2] for row in history(path)] == [1, 2]
    kinds = [[record.WhichOneof("record_type") for record in records(path)] for path in paths]
    assert ["preempting" in kind for kind in kinds] == [True, False, False]
    codes = [next(r.exit.exit_code for r in records(path) if r.HasField("exit")) for path in paths]
    assert codes == [143, 1, 0]


def test_wandb_that_cannot_be_reached_goes_on_offline(alone, tmp_path):
    with socket.socket() as closed:  # bound, never listening: connections are refused
        closed.bind(("127.0.0.1", 0))
        alone.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        alone.setenv("WANDB_API_KEY", "0" * 40)
        alone.setattr("kdschemes.tracking.wandb_run.INIT_TIMEOUT", 2.0)
        with pytest.warns(RuntimeWarning, match="W&B cannot start online .*connection refused.*: offline"):
            tracker = trackers(tmp_path / "runs" / "r1", "wandb")
        tracker.log(train(1), 1)
        tracker.finish()
    (path,) = wandb_files(tmp_path / "runs")
    assert [row["global_step"] for row in history(path)] == [1]


def test_wandb_mode_is_the_user_s(alone, tmp_path):
    alone.setenv("WANDB_MODE", "online")
    with pytest.raises(UserError, match="WANDB_MODE=online, but no key is known"):
        trackers(tmp_path / "runs" / "r1", "wandb")
    alone.setenv("WANDB_API_KEY", "short")
    with pytest.raises(UserError, match="WANDB_API_KEY") as error:
        trackers(tmp_path / "runs" / "r1", "wandb")
    assert "\n" not in str(error.value)
    wandb.teardown()  # the client reads the mode once
    alone.setenv("WANDB_MODE", "disabled")
    tracker = trackers(tmp_path / "runs" / "r1", "wandb")
    tracker.log(train(1), 1)
    tracker.finish()
    assert wandb_files(tmp_path / "runs") == []
